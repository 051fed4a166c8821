//! Mixtures of experts, forward and back.

use std::borrow::Cow;

use super::Session;
use super::activations::Activations;
use super::ffn::{self, BackwardJob, MlpTrace};
use super::routing::Route;
use super::visitor::{LayerInput, TokenRows};
use crate::arch::{Experts, Linear, Mlp, ParameterVector, SharedExpert};
use crate::error::Result;
use crate::math::exp;

/// The activations of a mixture's forward pass that the backward pass needs.
pub(super) struct MoeTrace<'a> {
    experts: &'a Experts<'a>,
    routes: Vec<Route>,
    /// The experts that any token went to.
    visits: Vec<Visit<'a>>,
    shared: Option<SharedTrace<'a>>,
    pub(super) out: Activations,
}

/// An expert, and the tokens that went to it.
struct Visit<'a> {
    expert: usize,
    tokens: Vec<RoutedToken>,
    trace: MlpTrace<'a>,
}

/// A token, and which of its chosen experts the expert is.
#[derive(Clone, Copy)]
struct RoutedToken {
    token: usize,
    choice: usize,
}

struct SharedTrace<'a> {
    trace: MlpTrace<'a>,
    gate: Option<SharedGate<'a>>,
}

/// The gate of the shared expert, and its value for each token.
struct SharedGate<'a> {
    linear: Linear<'a>,
    values: Vec<f32>,
}

impl MoeTrace<'_> {
    /// The number of elements it holds.
    pub(super) fn numbers(&self) -> usize {
        let visited: usize = self.visits.iter().map(|visit| visit.trace.numbers()).sum();
        let shared = self.shared.as_ref().map_or(0, |shared| shared.trace.numbers());
        visited + shared + self.out.values.len()
    }

    /// Tokens of each expert.
    pub(super) fn loads(&self) -> Vec<u64> {
        let mut loads = vec![0; self.experts.routed.len()];
        for visit in &self.visits {
            loads[visit.expert] = visit.tokens.len() as u64;
        }
        loads
    }
}

fn tokens_of(tokens: &[RoutedToken]) -> Vec<usize> {
    tokens.iter().map(|routed| routed.token).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Runs a mixture on `x`.
pub(super) fn forward<'a>(session: &Session<'_>, experts: &'a Experts<'a>, x: &Activations) -> Result<MoeTrace<'a>> {
    session.see_inputs(LayerInput::all(x), &[experts.router])?;
    let logits = session.forward_one(experts.router, x)?;
    let correction = experts.correction.map(|tensor| session.elements(ParameterVector { tensor, at: 0 }, logits.width));
    let correction = correction.transpose()?.unwrap_or_default();
    let route = |token| Route::new(&experts.routing, logits.row(token), &correction);
    let routes: Vec<Route> = (0..x.count()).map(route).collect();
    let visits = visit(session, experts, &routes, x)?;
    let mut out = Activations::zeros(x.count(), x.width);
    for Visit { tokens, trace, .. } in &visits {
        for (row, &RoutedToken { token, choice }) in tokens.iter().enumerate() {
            let share = routes[token].shares[choice];
            out.row_mut(token).iter_mut().zip(trace.out.row(row)).for_each(|(sum, value)| *sum += share * value);
        }
    }
    let shared = experts.shared.map(|shared| shared_forward(session, shared, x)).transpose()?;
    if let Some(SharedTrace { trace, gate }) = &shared {
        for token in 0..x.count() {
            let share = gate.as_ref().map_or(1.0, |gate| gate.values[token]);
            out.row_mut(token).iter_mut().zip(trace.out.row(token)).for_each(|(sum, value)| *sum += share * value);
        }
    }
    Ok(MoeTrace { experts, routes, visits, shared, out })
}

/// Runs each expert on the tokens that go to it.
fn visit<'a>(
    session: &Session<'_>,
    experts: &Experts<'a>,
    routes: &[Route],
    x: &Activations,
) -> Result<Vec<Visit<'a>>> {
    let mut tokens: Vec<Vec<RoutedToken>> = vec![Vec::new(); experts.routed.len()];
    for (token, route) in routes.iter().enumerate() {
        for (choice, &expert) in route.experts.iter().enumerate() {
            tokens[expert].push(RoutedToken { token, choice });
        }
    }
    let visited = tokens.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty());
    let (numbers, tokens): (Vec<usize>, Vec<Vec<RoutedToken>>) = visited.unzip();
    let places: Vec<Vec<usize>> = tokens.iter().map(|tokens| tokens_of(tokens)).collect();
    let inputs: Vec<Activations> = places.iter().map(|tokens| x.picked(tokens)).collect();
    let input = |(x, tokens)| LayerInput { x, rows: TokenRows::Routed(tokens), pool: Some(experts.router) };
    let networks: Vec<(Mlp<'a>, LayerInput<'_, '_>)> = numbers
        .iter()
        .zip(inputs.iter().zip(places.iter().map(Vec::as_slice)))
        .map(|(&expert, routed)| (experts.routed[expert], input(routed)))
        .collect();
    let traces = ffn::forward(session, &networks)?;
    let visits = numbers.into_iter().zip(tokens).zip(traces);
    Ok(visits.map(|((expert, tokens), trace)| Visit { expert, tokens, trace }).collect())
}

fn shared_forward<'a>(session: &Session<'_>, shared: SharedExpert<'a>, x: &Activations) -> Result<SharedTrace<'a>> {
    let trace = ffn::forward_one(session, shared.mlp, x)?;
    let gate = |linear: Linear<'a>| {
        let sigmoid = |&logit: &f32| (1.0 / (1.0 + exp(-f64::from(logit)))) as f32;
        let values = session.forward_one(linear, x)?.values.iter().map(sigmoid).collect();
        Ok(SharedGate { linear, values })
    };
    Ok(SharedTrace { trace, gate: shared.gate.map(gate).transpose()? })
}

/// Gradients at the input `x` of a mixture, from those at its output. Shows its matrices to the visitor.
pub(super) fn back(
    session: &Session<'_>,
    trace: &MoeTrace<'_>,
    x: &Activations,
    gradients: &Activations,
) -> Result<Activations> {
    let MoeTrace { experts, routes, visits, shared, .. } = trace;
    let count = x.count();
    let draws = gradients.count() / count;
    let places: Vec<Vec<usize>> = visits.iter().map(|visit| tokens_of(&visit.tokens)).collect();
    let inputs: Vec<Activations> = places.iter().map(|tokens| x.picked(tokens)).collect();
    let mut of_shares: Vec<Vec<f64>> =
        (0..draws * count).map(|row| vec![0.0; routes[row % count].experts.len()]).collect();
    let mut jobs = Vec::with_capacity(visits.len());
    for ((Visit { tokens, trace, .. }, x), places) in visits.iter().zip(&inputs).zip(&places) {
        let mut scaled = Activations::zeros(draws * tokens.len(), gradients.width);
        for draw in 0..draws {
            for (row, &RoutedToken { token, choice }) in tokens.iter().enumerate() {
                let gradient = gradients.row(draw * count + token);
                of_shares[draw * count + token][choice] = dot(gradient, trace.out.row(row));
                let share = routes[token].shares[choice];
                let out = scaled.row_mut(draw * tokens.len() + row);
                out.iter_mut().zip(gradient).for_each(|(out, gradient)| *out = share * gradient);
            }
        }
        let input = LayerInput { x, rows: TokenRows::Routed(places), pool: Some(experts.router) };
        jobs.push(BackwardJob::new(trace, input, Cow::Owned(scaled)));
    }
    let of_logits = Activations::computed(session.pass, gradients.count(), experts.router.outputs(), |row, out| {
        routes[row % count].back(&experts.routing, &of_shares[row], out);
    })?;
    // The router first: a visitor sees the inputs of all experts before those of each.
    let of_router = session.back_one(experts.router, x, &of_logits)?;
    ffn::back(session, &mut jobs)?;
    let mut out = Activations::zeros(gradients.count(), x.width);
    for (Visit { tokens, .. }, job) in visits.iter().zip(jobs) {
        for draw in 0..draws {
            for (row, &RoutedToken { token, .. }) in tokens.iter().enumerate() {
                let found = job.out.row(draw * tokens.len() + row);
                out.row_mut(draw * count + token).iter_mut().zip(found).for_each(|(sum, value)| *sum += value);
            }
        }
    }
    out.add(&of_router, 1.0);
    if let Some(shared) = shared {
        shared_back(session, shared, x, gradients, &mut out)?;
    }
    Ok(out)
}

/// Adds the gradients at `x` that come through the shared expert and its gate.
fn shared_back(
    session: &Session<'_>,
    shared: &SharedTrace<'_>,
    x: &Activations,
    gradients: &Activations,
    out: &mut Activations,
) -> Result<()> {
    let count = x.count();
    let mut scaled = gradients.clone();
    if let Some(SharedGate { linear, values }) = &shared.gate {
        let of_gate = Activations::computed(session.pass, gradients.count(), 1, |row, out| {
            let share = values[row % count];
            out[0] = share * (1.0 - share) * dot(gradients.row(row), shared.trace.out.row(row % count)) as f32;
        })?;
        out.add(&session.back_one(*linear, x, &of_gate)?, 1.0);
        for row in 0..gradients.count() {
            scaled.row_mut(row).iter_mut().for_each(|value| *value *= values[row % count]);
        }
    }
    out.add(&ffn::back_one(session, &shared.trace, x, &scaled)?, 1.0);
    Ok(())
}
