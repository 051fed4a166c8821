//! Feed-forward networks, dense or a mixture of experts, forward and back.

use std::borrow::Cow;
use std::ops::Range;

use super::Session;
use super::activation::Halves;
use super::matmul::stored::{Direction, Input, Job, Part, products};
use super::routing::Route;
use super::rows::Rows;
use crate::arch::traits::Routing;
use crate::arch::{Experts, Linear, Mlp, Vector};
use crate::error::{Error, Result};

/// What a network remembers of its way forward.
pub(super) struct Passed {
    halves: Halves,
    /// What went into the last matrix.
    inner: Rows,
    /// What came out.
    pub(super) out: Rows,
}

impl Passed {
    /// How many numbers it holds.
    pub(super) fn numbers(&self) -> usize {
        let gate = self.halves.gate.as_ref().map_or(0, |gate| gate.values.len());
        gate + self.halves.up.values.len() + self.inner.values.len() + self.out.values.len()
    }
}

/// What a mixture remembers.
pub(super) struct Mixed {
    routes: Vec<Route>,
    /// For each expert its tokens, and which of each token's experts it is.
    visits: Vec<Vec<(usize, usize)>>,
    passed: Vec<Option<Passed>>,
    shared: Option<Passed>,
    /// How much of the shared expert each token gets, if there is a gate.
    gates: Option<Vec<f32>>,
}

impl Mixed {
    /// How many numbers it holds.
    pub(super) fn numbers(&self) -> usize {
        self.passed.iter().flatten().chain(&self.shared).map(Passed::numbers).sum()
    }
}

/// Tokens of each expert of a mixture.
pub(super) fn loads(mixed: &Mixed) -> Vec<u64> {
    mixed.visits.iter().map(|visits| visits.len() as u64).collect()
}

/// The first matrices of a network, in the order that their gradients add up.
fn first_of<'a>(mlp: &Mlp<'a>) -> Vec<Linear<'a>> {
    [mlp.gate, mlp.up, mlp.gate_up].into_iter().flatten().collect()
}

fn last_of<'a>(mlp: &Mlp<'a>) -> Result<Linear<'a>> {
    mlp.down.ok_or_else(|| Error::Bug("a network without its last matrix".to_owned()))
}

fn router_of<'a>(experts: &Experts<'a>) -> Result<Linear<'a>> {
    experts.router.ok_or_else(|| Error::Bug("a mixture without a router".to_owned()))
}

/// What `networks` give of the inputs of each.
fn networks_forward(session: &Session<'_>, networks: &[Mlp<'_>], inputs: &[Rows]) -> Result<Vec<Passed>> {
    let alternating = session.decoder.conventions.alternating;
    let of = |(mlp, x)| first_of(mlp).into_iter().map(move |linear| Job::one(linear, x));
    let jobs: Vec<Job<'_, '_>> = networks.iter().zip(inputs).flat_map(of).collect();
    let mut firsts = products(session, Direction::Forward, &jobs)?.into_iter();
    drop(jobs);
    let mut halves = Vec::with_capacity(networks.len());
    for mlp in networks {
        let mut found = Vec::new();
        for linear in first_of(mlp) {
            let mut rows = firsts.next().ok_or_else(|| Error::Bug("a product is missing".to_owned()))?;
            session.add_bias(&linear, &mut rows)?;
            found.push(rows);
        }
        let last = found.pop().ok_or_else(|| Error::Bug("a network without its first matrix".to_owned()))?;
        halves.push(if mlp.gate_up.is_some() {
            Halves::split(&last, alternating)
        } else {
            Halves { gate: found.pop(), up: last }
        });
    }
    let inner: Vec<Rows> =
        halves.iter().map(|halves| session.gating().forward(session.pass, halves)).collect::<Result<_>>()?;
    let jobs = networks.iter().zip(&inner).map(|(mlp, x)| Ok(Job::one(last_of(mlp)?, x)));
    let jobs: Vec<Job<'_, '_>> = jobs.collect::<Result<_>>()?;
    let outs = products(session, Direction::Forward, &jobs)?;
    let mut passed = Vec::with_capacity(networks.len());
    for (((mlp, halves), inner), mut out) in networks.iter().zip(halves).zip(inner).zip(outs) {
        session.add_bias(&last_of(mlp)?, &mut out)?;
        passed.push(Passed { halves, inner, out });
    }
    Ok(passed)
}

/// One of the networks that are gone back through together.
struct Going<'g, 'a> {
    mlp: Mlp<'a>,
    /// What went in.
    x: &'g Rows,
    passed: &'g Passed,
    /// Gradients at what came out, some for each row.
    gradients: Cow<'g, Rows>,
    /// The rows of each window.
    windows: Vec<Range<usize>>,
}

/// Gradients at the inputs of networks, from those at their outputs. Takes down the moments of their matrices.
fn networks_back(session: &Session<'_>, going: &[Going<'_, '_>]) -> Result<Vec<Rows>> {
    let alternating = session.decoder.conventions.alternating;
    let mut jobs = Vec::with_capacity(going.len());
    for one in going {
        let last = last_of(&one.mlp)?;
        session.record(&one.passed.inner, &[(last, &one.gradients)], &one.windows)?;
        jobs.push(Job::one(last, &one.gradients));
    }
    let inners = products(session, Direction::Back, &jobs)?;
    let mut firsts: Vec<Vec<(Linear<'_>, Rows)>> = Vec::with_capacity(going.len());
    for (one, inner) in going.iter().zip(&inners) {
        let halves = session.gating().back(session, &one.passed.halves, inner)?;
        let rows = if one.mlp.gate_up.is_some() {
            vec![halves.fused(alternating)]
        } else {
            halves.gate.into_iter().chain([halves.up]).collect()
        };
        let linears: Vec<(Linear<'_>, Rows)> = first_of(&one.mlp).into_iter().zip(rows).collect();
        let told: Vec<_> = linears.iter().map(|(linear, rows)| (*linear, rows)).collect();
        session.record(one.x, &told, &one.windows)?;
        firsts.push(linears);
    }
    drop(inners);
    let jobs: Vec<Job<'_, '_>> = going
        .iter()
        .zip(&firsts)
        .map(|(one, linears)| Job {
            parts: linears.iter().map(|(linear, x)| Part { linear: *linear, x: Input::Whole(x) }).collect(),
            count: one.gradients.count(),
        })
        .collect();
    products(session, Direction::Back, &jobs)
}

/// A dense network, forward.
pub(super) fn dense_forward(session: &Session<'_>, mlp: &Mlp<'_>, x: &Rows) -> Result<Passed> {
    let mut passed = networks_forward(session, &[*mlp], std::slice::from_ref(x))?;
    passed.pop().ok_or_else(|| Error::Bug("a network gave nothing".to_owned()))
}

/// A dense network, back.
pub(super) fn dense_back(
    session: &Session<'_>,
    mlp: &Mlp<'_>,
    x: &Rows,
    passed: &Passed,
    gradients: &Rows,
) -> Result<Rows> {
    let windows = Session::windows(x.count());
    let going = [Going { mlp: *mlp, x, passed, gradients: Cow::Borrowed(gradients), windows }];
    networks_back(session, &going)?.pop().ok_or_else(|| Error::Bug("a network gave nothing back".to_owned()))
}

/// A mixture, forward: what comes out, and what is remembered.
pub(super) fn mixture_forward(session: &Session<'_>, experts: &Experts<'_>, x: &Rows) -> Result<(Rows, Mixed)> {
    let routing = session.routing()?;
    let router = router_of(experts)?;
    let logits = session.linear(&router, x)?;
    let correction = experts.correction.map(|tensor| session.elements(Vector { tensor, at: 0 }, logits.width));
    let correction = correction.transpose()?.unwrap_or_default();
    let routes: Vec<Route> = (0..x.count()).map(|token| Route::new(routing, logits.row(token), &correction)).collect();
    let mut visits = vec![Vec::new(); experts.experts.len()];
    for (token, route) in routes.iter().enumerate() {
        for (at, &expert) in route.experts.iter().enumerate() {
            visits[expert].push((token, at));
        }
    }
    let visited: Vec<usize> = (0..visits.len()).filter(|&expert| !visits[expert].is_empty()).collect();
    let inputs: Vec<Rows> = visited.iter().map(|&expert| x.picked(&tokens_of(&visits[expert]))).collect();
    let networks: Vec<Mlp<'_>> = visited.iter().map(|&expert| experts.experts[expert]).collect();
    let mut out = Rows::zeros(x.count(), x.width);
    let mut passed: Vec<Option<Passed>> = visits.iter().map(|_| None).collect();
    for (&expert, one) in visited.iter().zip(networks_forward(session, &networks, &inputs)?) {
        for (row, &(token, at)) in visits[expert].iter().enumerate() {
            let share = routes[token].shares[at];
            out.row_mut(token).iter_mut().zip(one.out.row(row)).for_each(|(sum, value)| *sum += share * value);
        }
        passed[expert] = Some(one);
    }
    let shared = experts.shared.as_ref().map(|mlp| dense_forward(session, mlp, x)).transpose()?;
    let gates = match experts.shared_gate {
        Some(gate) => {
            let sigmoid = |&logit: &f32| (1.0 / (1.0 + crate::math::exp(-f64::from(logit)))) as f32;
            Some(session.linear(&gate, x)?.values.iter().map(sigmoid).collect::<Vec<f32>>())
        }
        None => None,
    };
    if let Some(shared) = &shared {
        for token in 0..x.count() {
            let share = gates.as_ref().map_or(1.0, |gates| gates[token]);
            out.row_mut(token).iter_mut().zip(shared.out.row(token)).for_each(|(sum, value)| *sum += share * value);
        }
    }
    Ok((out, Mixed { routes, visits, passed, shared, gates }))
}

fn tokens_of(visits: &[(usize, usize)]) -> Vec<usize> {
    visits.iter().map(|&(token, _)| token).collect()
}

/// The product of two rows.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// A mixture, back.
pub(super) fn mixture_back(
    session: &Session<'_>,
    experts: &Experts<'_>,
    x: &Rows,
    mixed: &Mixed,
    gradients: &Rows,
) -> Result<Rows> {
    let (count, routing) = (x.count(), session.routing()?);
    let draws = gradients.count() / count;
    let visited: Vec<usize> = (0..mixed.visits.len()).filter(|&expert| mixed.passed[expert].is_some()).collect();
    let inputs: Vec<Rows> = visited.iter().map(|&expert| x.picked(&tokens_of(&mixed.visits[expert]))).collect();
    let mut of_shares = vec![Vec::new(); draws * count];
    for (row, of) in of_shares.iter_mut().enumerate() {
        of.resize(mixed.routes[row % count].experts.len(), 0.0);
    }
    let mut going = Vec::with_capacity(visited.len());
    for (&expert, x) in visited.iter().zip(&inputs) {
        let Some(passed) = &mixed.passed[expert] else { continue };
        let visits = &mixed.visits[expert];
        let mut scaled = Rows::zeros(draws * visits.len(), gradients.width);
        for draw in 0..draws {
            for (row, &(token, at)) in visits.iter().enumerate() {
                let gradient = gradients.row(draw * count + token);
                of_shares[draw * count + token][at] = dot(gradient, passed.out.row(row));
                let share = mixed.routes[token].shares[at];
                let out = scaled.row_mut(draw * visits.len() + row);
                out.iter_mut().zip(gradient).for_each(|(out, gradient)| *out = share * gradient);
            }
        }
        let windows = Session::windows_of(&tokens_of(visits));
        going.push(Going { mlp: experts.experts[expert], x, passed, gradients: Cow::Owned(scaled), windows });
    }
    let mut out = Rows::zeros(gradients.count(), x.width);
    for (&expert, rows) in visited.iter().zip(networks_back(session, &going)?) {
        let visits = &mixed.visits[expert];
        for draw in 0..draws {
            for (row, &(token, _)) in visits.iter().enumerate() {
                let found = rows.row(draw * visits.len() + row);
                out.row_mut(draw * count + token).iter_mut().zip(found).for_each(|(sum, value)| *sum += value);
            }
        }
    }
    let router = router_of(experts)?;
    let of_logits = Rows::made(session.pass, gradients.count(), router.outputs(), |row, out| {
        mixed.routes[row % count].back(routing, &of_shares[row], out);
    })?;
    out.add(&session.linear_back(&router, x, &of_logits)?, 1.0);
    shared_back(session, experts, x, mixed, gradients, &mut out)?;
    Ok(out)
}

/// Adds what the shared expert and its gate give back.
fn shared_back(
    session: &Session<'_>,
    experts: &Experts<'_>,
    x: &Rows,
    mixed: &Mixed,
    gradients: &Rows,
    out: &mut Rows,
) -> Result<()> {
    let (Some(mlp), Some(passed)) = (&experts.shared, &mixed.shared) else { return Ok(()) };
    let count = x.count();
    let mut scaled = gradients.clone();
    if let (Some(gate), Some(gates)) = (experts.shared_gate, &mixed.gates) {
        let of_gate = Rows::made(session.pass, gradients.count(), 1, |row, out| {
            let share = gates[row % count];
            out[0] = share * (1.0 - share) * dot(gradients.row(row), passed.out.row(row % count)) as f32;
        })?;
        out.add(&session.linear_back(&gate, x, &of_gate)?, 1.0);
        for row in 0..gradients.count() {
            scaled.row_mut(row).iter_mut().for_each(|value| *value *= gates[row % count]);
        }
    }
    out.add(&dense_back(session, mlp, x, passed, &scaled)?, 1.0);
    Ok(())
}

impl Session<'_> {
    /// How experts are chosen.
    fn routing(&self) -> Result<&Routing> {
        let routing = self.decoder.conventions.routing.as_ref();
        routing.ok_or_else(|| Error::Bug("a mixture without a rule to choose by".to_owned()))
    }
}
