//! Feed-forward networks, forward and back.

use std::borrow::Cow;

use super::activations::Activations;
use super::gating::Gating;
use super::stored::{Direction, Operand, Product, products};
use super::visitor::LayerInput;
use super::{LinearOutput, Session};
use crate::arch::{Expansion, Linear, Mlp};
use crate::error::Result;

/// The activations of a network's forward pass that the backward pass needs.
pub(super) struct MlpTrace<'a> {
    /// Outputs of the first matrices.
    first: Expansion<LinearOutput<'a>>,
    /// Input of the last matrix.
    inner: Activations,
    down: Linear<'a>,
    pub(super) out: Activations,
}

impl MlpTrace<'_> {
    /// The number of elements it holds.
    pub(super) fn numbers(&self) -> usize {
        let first: usize = self.first.iter().map(|output| output.rows.values.len()).sum();
        first + self.inner.values.len() + self.out.values.len()
    }
}

fn see_expansion(session: &Session<'_>, input: LayerInput<'_, '_>, mlp: Mlp<'_>) -> Result<()> {
    let linears: Vec<Linear<'_>> = mlp.expansion.iter().copied().collect();
    session.see_inputs(input, &linears)
}

/// Runs networks, each on its own input.
pub(super) fn forward<'a>(
    session: &Session<'_>,
    networks: &[(Mlp<'a>, LayerInput<'_, '_>)],
) -> Result<Vec<MlpTrace<'a>>> {
    for (mlp, input) in networks {
        see_expansion(session, *input, *mlp)?;
    }
    let output = |linear: Linear<'a>, x: &Activations| LinearOutput::zeros(linear, x.count());
    let mut firsts: Vec<Expansion<LinearOutput<'a>>> =
        networks.iter().map(|(mlp, input)| mlp.expansion.map(|linear| output(linear, input.x))).collect();
    let each =
        networks.iter().zip(&mut firsts).flat_map(|((_, input), first)| first.iter_mut().map(|out| (input.x, out)));
    session.forward(each.collect())?;
    let gating = Gating::of(&session.model.conventions);
    let inners: Vec<Activations> =
        firsts.iter().map(|first| gating.forward(session.pass, first)).collect::<Result<_>>()?;
    for ((mlp, input), inner) in networks.iter().zip(&inners) {
        session.see_inputs(LayerInput { x: inner, rows: input.rows, pool: None }, &[mlp.down])?;
    }
    let mut lasts: Vec<LinearOutput<'a>> =
        networks.iter().zip(&inners).map(|((mlp, _), inner)| output(mlp.down, inner)).collect();
    session.forward(inners.iter().zip(&mut lasts).collect())?;
    let traces = firsts.into_iter().zip(inners).zip(lasts);
    Ok(traces.map(|((first, inner), last)| MlpTrace { first, inner, down: last.linear, out: last.rows }).collect())
}

pub(super) fn forward_one<'a>(session: &Session<'_>, mlp: Mlp<'a>, x: &Activations) -> Result<MlpTrace<'a>> {
    see_expansion(session, LayerInput::all(x), mlp)?;
    let mut first = mlp.expansion.map(|linear| LinearOutput::zeros(linear, x.count()));
    session.forward(first.iter_mut().map(|out| (x, out)).collect())?;
    let inner = Gating::of(&session.model.conventions).forward(session.pass, &first)?;
    session.see_inputs(LayerInput::all(&inner), &[mlp.down])?;
    let out = session.forward_one(mlp.down, &inner)?;
    Ok(MlpTrace { first, inner, down: mlp.down, out })
}

/// The backward pass through one of several networks.
pub(super) struct BackwardJob<'g, 'a> {
    trace: &'g MlpTrace<'a>,
    input: LayerInput<'g, 'a>,
    /// Gradients at its output: one row or more per row of the input.
    gradients: Cow<'g, Activations>,
    /// Gradients at its input.
    pub(super) out: Activations,
}

impl<'g, 'a> BackwardJob<'g, 'a> {
    pub(super) fn new(trace: &'g MlpTrace<'a>, input: LayerInput<'g, 'a>, gradients: Cow<'g, Activations>) -> Self {
        let out = Activations::zeros(gradients.count(), input.x.width);
        Self { trace, input, gradients, out }
    }
}

/// Computes the gradients at the inputs of networks. Shows their matrices to the visitor.
pub(super) fn back(session: &Session<'_>, jobs: &mut [BackwardJob<'_, '_>]) -> Result<()> {
    let mut inners = Vec::with_capacity(jobs.len());
    for BackwardJob { trace, input, gradients, .. } in jobs.iter() {
        let inner = LayerInput { x: &trace.inner, rows: input.rows, pool: None };
        session.see_gradients(inner, &[(trace.down, gradients)])?;
        inners.push(Activations::zeros(gradients.count(), trace.down.inputs()));
    }
    let each = jobs.iter().zip(&mut inners);
    let each = each.map(|(job, out)| Product { operands: vec![Operand::new(job.trace.down, &job.gradients)], out });
    products(session, Direction::Back, each.collect())?;
    let gating = Gating::of(&session.model.conventions);
    let mut firsts = Vec::with_capacity(jobs.len());
    for (BackwardJob { trace, input, .. }, inner) in jobs.iter().zip(&inners) {
        let first = gating.back(session, &trace.first, inner)?;
        let gradients: Vec<_> = first.iter().map(|of| (of.linear, &of.rows)).collect();
        session.see_gradients(*input, &gradients)?;
        firsts.push(first);
    }
    drop(inners);
    let each = firsts.iter().zip(jobs).map(|(first, job)| {
        let operands = first.iter().map(|of| Operand::new(of.linear, &of.rows)).collect();
        Product { operands, out: &mut job.out }
    });
    products(session, Direction::Back, each.collect())
}

/// Gradients at the input of one network that saw all tokens.
pub(super) fn back_one(
    session: &Session<'_>,
    trace: &MlpTrace<'_>,
    x: &Activations,
    gradients: &Activations,
) -> Result<Activations> {
    let mut jobs = [BackwardJob::new(trace, LayerInput::all(x), Cow::Borrowed(gradients))];
    back(session, &mut jobs)?;
    let [job] = jobs;
    Ok(job.out)
}
