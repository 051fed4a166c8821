//! The model card of an output.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use super::conversion::Conversion;
use crate::budget::size;
use crate::format::CardFacts;
use crate::name::Role;
use crate::rate_distortion::Objective;
use crate::schema::manifest::Manifest;
use crate::schema::plan::Plan;

/// File name of the source's own card in the output.
pub(crate) const SOURCE_CARD: &str = "README.source.md";

/// Writes the card of an output.
///
/// Without a runtime that loads the output, the card contains no instructions to run it.
pub(crate) fn text(conversion: &Conversion, plan: &Plan, manifest: &Manifest, has_runtime: bool) -> String {
    let facts = conversion.format.card();
    let mut card = String::from("---\n");
    if has_runtime {
        let _ = writeln!(card, "library_name: {}", facts.library);
    }
    let source_card = fs::read_to_string(conversion.checkpoint.dir.join("README.md")).unwrap_or_default();
    for line in licence(&source_card) {
        card += line;
        card.push('\n');
    }
    if has_runtime {
        card += "pipeline_tag: text-generation\n";
    }
    card += "tags:\n";
    for tag in facts.tags {
        let _ = writeln!(card, "- {tag}");
    }
    card += "- ramrs\n---\n\n";
    let _ = body(&mut card, conversion, plan, manifest);
    let _ = ending(&mut card, facts, manifest, has_runtime, !source_card.is_empty());
    card
}

/// The licence lines of the source card's front matter.
fn licence(source_card: &str) -> Vec<&str> {
    let mut lines = source_card.lines();
    if lines.next() != Some("---") {
        return Vec::new();
    }
    lines.take_while(|line| *line != "---").filter(|line| line.starts_with("license")).collect()
}

fn body(card: &mut String, conversion: &Conversion, plan: &Plan, manifest: &Manifest) -> std::fmt::Result {
    let totals = &manifest.totals;
    let model = conversion.checkpoint.model_type().unwrap_or("model");
    writeln!(card, "# A quantized {model}\n")?;
    writeln!(
        card,
        "Compressed by `ramrs` {} from the weights alone: no calibration data was used.\n",
        manifest.tool.version
    )?;
    writeln!(card, "| | |\n|---|---|")?;
    writeln!(card, "| weights | {} |", manifest.source.parameters)?;
    if let Some(budget) = &manifest.budget {
        writeln!(card, "| budget | {budget} |")?;
    }
    writeln!(card, "| bits per weight, everything counted | {:.4} |", totals.effective_bpw)?;
    writeln!(
        card,
        "| size | {} ({:.1} % of the source) |",
        size(totals.file_bytes),
        share(totals.file_bytes, manifest.source.file_bytes)
    )?;
    let unit = match manifest.settings.objective {
        Objective::Output => "nats per token",
        Objective::Mse => "squared error",
        Objective::Mint => "sum of NRMSE",
    };
    writeln!(card, "| predicted loss ({unit}) | {:.4} |", totals.loss)?;
    if let Some(check) = &manifest.check {
        let error = check.kl.error.map_or_else(String::new, |error| format!(" ± {error:.4}"));
        let tokens = check.windows * check.window;
        writeln!(card, "| measured on {tokens} tokens of its own (nats per token) | {:.4}{error} |", check.kl.value)?;
    }
    writeln!(
        card,
        "| how | objective {}, effort {}, sensitivity {} |\n",
        manifest.settings.objective, manifest.settings.effort, manifest.settings.sensitivity
    )?;
    writeln!(card, "## Where the bits are\n")?;
    writeln!(card, "| role | weights | schemes |\n|---|---|---|")?;
    let mut roles: BTreeMap<Role, (u64, BTreeMap<String, u64>)> = BTreeMap::new();
    for (output, planned) in conversion.outputs.iter().zip(&plan.tensors) {
        let (weights, schemes) = roles.entry(planned.role).or_default();
        *weights += output.target.shape.iter().product::<u64>();
        let scheme = match output.packed.filter(|_| planned.scheme.is_kept()) {
            Some(packed) => format!("kept in {packed}"),
            None => planned.scheme.to_string(),
        };
        *schemes.entry(scheme).or_default() += 1;
    }
    for (role, (weights, schemes)) in roles {
        let schemes: Vec<_> = schemes.into_iter().map(|(scheme, count)| format!("{count} × {scheme}")).collect();
        writeln!(card, "| {role} | {weights} | {} |", schemes.join(", "))?;
    }
    writeln!(card, "\n{}\n", conversion.format.card().schemes)
}

/// Writes the instructions for use and the closing sections.
fn ending(
    card: &mut String,
    facts: CardFacts,
    manifest: &Manifest,
    has_runtime: bool,
    has_source_card: bool,
) -> std::fmt::Result {
    if has_runtime {
        writeln!(card, "## Use\n\n{}\n", facts.usage)?;
    } else {
        writeln!(card, "## Use\n\n{} No runtime is promised to load them.\n", facts.generic)?;
    }
    writeln!(
        card,
        "`ramrs-manifest.json` lists every tensor of the source, what became of it, and the SHA-256 of every file;"
    )?;
    writeln!(card, "`ramrs verify PATH_TO_THIS_DIRECTORY` checks them.")?;
    if has_source_card {
        writeln!(card, "The card of the source model is in `{SOURCE_CARD}`.")?;
    }
    for warning in &manifest.warnings {
        writeln!(card, "\n> {warning}")?;
    }
    Ok(())
}

fn share(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_is_carried_over_and_nothing_else() {
        let card = "---\nlanguage: en\nlicense: apache-2.0\nlicense_link: x\n---\nlicense: not this\n";
        assert_eq!(licence(card), ["license: apache-2.0", "license_link: x"]);
        assert!(licence("# no front matter\nlicense: x").is_empty());
    }
}
