//! Decides which tensors may be quantized to which schemes, and states the reasons.
//!
//! There are two kinds of rules. Properties of a tensor decide whether any scheme is available ([`candidate`]), for an
//! analysis and every plan from it. Options of the user restrict the schemes of a plan ([`Policy`]).

use std::borrow::Cow;

use regex::Regex;

use crate::band::Matrix;
use crate::codec::{Bits, Scheme};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::name::{Name, Role};
use crate::option::OptionName;

/// Signal-to-noise ratio at a matrix's output below which the matrix is considered unusable, in decibels.
pub(crate) const FLOOR_DB: f64 = 9.0;

/// Minimum bits of routers: choosing a wrong expert costs more than any rounding error.
const ROUTER_BITS: Bits = Bits::whole(8);

/// The reason why a tensor is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    NotAWeight,
    /// Not two-dimensional; with its shape.
    NotAMatrix(Vec<u64>),
    /// Not of a float type that ramrs decodes.
    NotAFloat(Dtype),
    Role(Role),
    /// No group size of the format's schemes divides its rows.
    Columns {
        /// Weights per row.
        cols: u64,
        /// The row lengths that the codec accepts.
        blocks: &'static str,
    },
    /// The runtime cannot read it quantized, for this reason.
    Runtime(Cow<'static, str>),
    /// Kept by this rule of the user.
    ByRule(String),
    /// Kept by the allocation, within the limits of the policy.
    ByAllocation,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAWeight => out.write_str("not the weight of a module"),
            Self::NotAMatrix(shape) => write!(out, "not a matrix: shape {shape:?}"),
            Self::NotAFloat(dtype) => write!(out, "{dtype} is not a float type"),
            Self::Role(role) => write!(out, "{role}: never quantized"),
            Self::Columns { cols, blocks } => write!(out, "rows of {cols} do not divide into {blocks}"),
            Self::Runtime(reason) => out.write_str(reason),
            Self::ByRule(rule) => write!(out, "asked for by {rule}"),
            Self::ByAllocation => out.write_str("worth its bytes: chosen by the allocation"),
        }
    }
}

/// The properties of an output tensor that the rules use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub name: &'a Name,
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [u64],
    /// Whether it is a stack of matrices.
    pub stacked: bool,
    /// The reason why the runtime cannot read it quantized, if it cannot.
    pub unquantizable: Option<&'static str>,
}

/// All rows as one matrix and the schemes of `format` for it, by increasing bytes.
///
/// # Errors
/// The reason why no scheme is available.
pub(crate) fn candidate(subject: Subject<'_>, format: &dyn Format) -> std::result::Result<(Matrix, Vec<Scheme>), Kept> {
    let Subject { name, dtype, shape, stacked, unquantizable } = subject;
    match name.role {
        Role::Norm | Role::Convolution | Role::Position | Role::Parameter | Role::Tower | Role::MultiToken => {
            return Err(Kept::Role(name.role));
        }
        _ if !name.is_weight => return Err(Kept::NotAWeight),
        _ if !dtype.is_float() => return Err(Kept::NotAFloat(dtype)),
        _ if shape.len() != if stacked { 3 } else { 2 } => return Err(Kept::NotAMatrix(shape.to_vec())),
        _ => {}
    }
    if let Some(reason) = unquantizable {
        return Err(Kept::Runtime(reason.into()));
    }
    let float = Float::of(dtype).ok_or(Kept::NotAFloat(dtype))?;
    let (cols, above) = shape.split_last().map_or((0, &[][..]), |(cols, above)| (*cols, above));
    let matrix = Matrix { rows: above.iter().product(), cols, float };
    if matrix.elements() == 0 {
        return Err(Kept::NotAFloat(dtype));
    }
    let schemes = format.candidates(name, matrix);
    if schemes.is_empty() {
        if let Some(reason) = format.no_candidates(name, matrix) {
            return Err(Kept::Runtime(reason.into()));
        }
        let codec = format.schemes().first().and_then(|scheme| scheme.codec());
        return Err(Kept::Columns { cols, blocks: codec.map_or("blocks of a codec", |codec| codec.blocks()) });
    }
    Ok((matrix, schemes))
}

/// The effect of a rule on a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spec {
    /// The source's bytes are kept.
    Kept,
    /// Schemes whose codes have bits in a range.
    Bits {
        min: Bits,
        max: Bits,
        /// Restricts the range to schemes with this text after the bits: `g64`.
        suffix: Option<String>,
    },
    /// One scheme, given by its text form.
    Exact(Scheme),
}

/// The text after the bits of a scheme: `g64` of `4g64` and of `int4g64`.
fn suffix(scheme: Scheme) -> String {
    let text = scheme.to_string();
    let bits = text.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    bits.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned()
}

/// The scheme of `schemes` with this text, or with these bits and this suffix: `int4g64` or `4g64`.
#[must_use]
pub(crate) fn find_scheme(text: &str, schemes: &[Scheme]) -> Option<Scheme> {
    let exact = schemes.iter().find(|scheme| scheme.to_string() == text);
    let in_short = |scheme: &&Scheme| {
        scheme.code_bits().is_some_and(|bits| format!("{bits}{}", suffix(**scheme)) == text)
            && !suffix(**scheme).is_empty()
    };
    exact.or_else(|| schemes.iter().find(in_short)).copied()
}

/// Distinct values of `of` over `schemes`, in their order, as a list.
fn listed<T: ToString>(schemes: &[Scheme], of: impl Fn(Scheme) -> T) -> String {
    let mut found: Vec<String> = Vec::new();
    for text in schemes.iter().map(|&scheme| of(scheme).to_string()) {
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found.join(" ")
}

/// The code widths of `schemes`, as a list.
fn widths(schemes: &[Scheme]) -> String {
    listed(schemes, |scheme| scheme.code_bits().map_or(String::new(), |bits| bits.to_string()))
}

/// Whether one of `schemes` has codes of `bits` bits.
fn has_width(schemes: &[Scheme], bits: Bits) -> bool {
    schemes.iter().any(|scheme| scheme.code_bits() == Some(bits))
}

impl Spec {
    /// Parses `kept`, a scheme of `schemes`, or a range of bits: `4`, `3-6` or `3-6g64`.
    fn parse(text: &str, schemes: &[Scheme]) -> std::result::Result<Self, String> {
        if ["kept", "keep", "f16", "bf16", "f32", "16"].contains(&text) {
            return Ok(Self::Kept);
        }
        let (bits, after) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(text.len()));
        if bits.is_empty()
            && let Some(exact) = schemes.iter().copied().find(|scheme| scheme.to_string() == text)
        {
            return Ok(Self::Exact(exact));
        }
        if !after.is_empty() && !schemes.iter().any(|&scheme| suffix(scheme) == after) {
            return Err(format!("`{after}` is none of {}", listed(schemes, suffix)));
        }
        let (min, max) = bits.split_once('-').unwrap_or((bits, bits));
        let width = |bits: &str| bits.parse().ok().map(Bits::whole).filter(|bits| has_width(schemes, *bits));
        match (width(min), width(max)) {
            (Some(min), Some(max)) if min <= max => {
                Ok(Self::Bits { min, max, suffix: (!after.is_empty()).then(|| after.to_owned()) })
            }
            _ => Err(format!(
                "`{text}` is not a scheme: kept, BITS or MIN-MAX of {}, optionally followed by one of {}",
                widths(schemes),
                listed(schemes, suffix)
            )),
        }
    }
}

/// Options of a policy, as text.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyOptions {
    /// Minimum bits per code. An explicit minimum, such as 2, also lifts the floor.
    pub min_bits: Option<u8>,
    /// Maximum bits per code. Tensors that can be quantized are then not kept.
    pub max_bits: Option<u8>,
    /// Signal-to-noise floor in decibels; 9 by default.
    pub floor_db: Option<f64>,
    /// Regular expressions of tensors to keep.
    pub keep: Vec<String>,
    /// Rules `REGEX=SPEC`. The last matching rule applies.
    pub tensor: Vec<String>,
    /// Regular expressions of whole scheme names. Without any, all schemes of the format are used. A rule that names a scheme
    /// has it nevertheless.
    pub schemes: Vec<String>,
}

/// The parsed options of a policy.
#[derive(Debug)]
pub(crate) struct Policy {
    min_bits: Option<Bits>,
    max_bits: Option<Bits>,
    floor_db: Option<f64>,
    rules: Vec<PolicyRule>,
    /// The schemes that may be used; `None` for all.
    schemes: Option<Vec<Scheme>>,
}

#[derive(Debug)]
struct PolicyRule {
    pattern: Regex,
    spec: Spec,
    /// The option that contains the rule.
    option: OptionName,
    /// The user's spelling of the rule.
    text: String,
}

impl PolicyRule {
    /// The rule's text in a plan. Plans are files, so the text is fixed and independent of the front.
    fn described(&self) -> String {
        let option = if self.option == OptionName::Keep { "--keep" } else { "--tensor" };
        format!("{option} {}", self.text)
    }
}

/// Limits on the scheme of one candidate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    spec: Option<Spec>,
    /// Minimum and maximum bits per code.
    bits: (Option<Bits>, Option<Bits>),
    /// The schemes that may be used; `None` for all.
    schemes: Option<Vec<Scheme>>,
    /// Whether it may be kept.
    pub kept: bool,
    /// Signal-to-noise floor at the output, in decibels.
    pub floor_db: Option<f64>,
    /// The user's rule behind the limits, if there is one.
    pub rule: Option<String>,
}

impl Limits {
    /// The reason for `scheme`.
    #[must_use]
    pub(crate) fn why(&self, scheme: Scheme) -> String {
        let is_decided = match &self.spec {
            Some(Spec::Kept | Spec::Exact(_)) => true,
            Some(Spec::Bits { min, max, suffix }) => min == max && suffix.is_some(),
            None => false,
        };
        match &self.rule {
            Some(rule) if is_decided => Kept::ByRule(rule.clone()).to_string(),
            Some(rule) => format!("the allocation, within {rule}"),
            None if scheme.is_kept() => Kept::ByAllocation.to_string(),
            None => "the allocation".to_owned(),
        }
    }

    /// Whether the plan may choose `scheme`, without regard to the floor.
    #[must_use]
    pub(crate) fn admits(&self, scheme: Scheme) -> bool {
        let Some(bits) = scheme.code_bits() else { return self.kept };
        let is_named = matches!(&self.spec, Some(Spec::Exact(_) | Spec::Bits { suffix: Some(_), .. }));
        if !is_named && self.schemes.as_ref().is_some_and(|used| !used.contains(&scheme)) {
            return false;
        }
        let within = |min: Option<Bits>, max: Option<Bits>| {
            min.is_none_or(|min| bits >= min) && max.is_none_or(|max| bits <= max)
        };
        match &self.spec {
            Some(Spec::Kept) => false,
            Some(Spec::Exact(exact)) => scheme == *exact,
            Some(Spec::Bits { min, max, suffix: wanted }) => {
                within(Some(*min), Some(*max)) && wanted.as_ref().is_none_or(|wanted| suffix(scheme) == *wanted)
            }
            None => within(self.bits.0, self.bits.1),
        }
    }

    /// Whether the floor excludes `scheme` with its signal-to-noise ratio.
    ///
    /// The floor applies to codes of less than 3 bits. A matrix below it with longer codes is so by nature, such as a
    /// router that outputs noise.
    #[must_use]
    pub(crate) fn is_below_floor(&self, scheme: Scheme, sqnr_db: f64) -> bool {
        let is_coarse = scheme.code_bits().is_some_and(|bits| bits < Bits::whole(3));
        is_coarse && self.floor_db.is_some_and(|least| sqnr_db < least)
    }
}

impl Policy {
    /// Parses `options` for a format that has `schemes`.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(crate) fn new(options: &PolicyOptions, schemes: &[Scheme]) -> Result<Self> {
        let bits = |option, bits: Option<u8>| match bits {
            Some(bits) if !has_width(schemes, Bits::whole(bits.into())) => {
                Err(Error::option(option, bits, format!("not one of {}", widths(schemes))))
            }
            _ => Ok(bits.map(|bits| Bits::whole(bits.into()))),
        };
        let (min_bits, max_bits) =
            (bits(OptionName::MinBits, options.min_bits)?, bits(OptionName::MaxBits, options.max_bits)?);
        if let (Some(min), Some(max)) = (min_bits, max_bits)
            && min > max
        {
            return Err(Error::option(OptionName::MinBits, min, format!("is above ⟨max_bits={max}⟩")));
        }
        // An explicit minimum, such as 2 bits, lifts the floor unless a floor is given.
        let floor_db = options.floor_db.or(min_bits.is_none().then_some(FLOOR_DB));
        if let Some(floor_db) = floor_db.filter(|floor_db| !(-100.0..=100.0).contains(floor_db)) {
            return Err(Error::option(OptionName::FloorDb, floor_db, "not between -100 and 100"));
        }
        let mut rules = Vec::new();
        for pattern in &options.keep {
            rules.push(PolicyRule {
                pattern: regex(OptionName::Keep, pattern, pattern)?,
                spec: Spec::Kept,
                option: OptionName::Keep,
                text: pattern.clone(),
            });
        }
        for rule in &options.tensor {
            let wrong = |reason: String| Error::option(OptionName::Tensor, rule, reason);
            let (pattern, spec) =
                rule.rsplit_once('=').ok_or_else(|| wrong("has no `=`: write REGEX=SPEC".to_owned()))?;
            let spec = Spec::parse(spec, schemes).map_err(wrong)?;
            let pattern = regex(OptionName::Tensor, rule, pattern)?;
            rules.push(PolicyRule { pattern, spec, option: OptionName::Tensor, text: rule.clone() });
        }
        Ok(Self { min_bits, max_bits, floor_db, rules, schemes: used_schemes(&options.schemes, schemes)? })
    }

    /// The limits of a candidate. `names` contains its own name and the names of its source tensors.
    #[must_use]
    pub(crate) fn allowed<'a>(&self, names: impl IntoIterator<Item = &'a str>, role: Role) -> Limits {
        let names: Vec<&str> = names.into_iter().collect();
        let matches = |rule: &&PolicyRule| names.iter().any(|name| rule.pattern.is_match(name));
        let rule = self.rules.iter().rev().find(matches);
        let mut allowed = Limits {
            spec: rule.map(|rule| rule.spec.clone()),
            bits: (self.min_bits, self.max_bits),
            kept: self.max_bits.is_none(),
            schemes: self.schemes.clone(),
            floor_db: self.floor_db,
            rule: rule.map(PolicyRule::described),
        };
        match &allowed.spec {
            Some(Spec::Kept) => allowed.kept = true,
            Some(Spec::Bits { .. } | Spec::Exact(_)) => (allowed.kept, allowed.floor_db) = (false, None),
            None if role == Role::Router => {
                let least = self.max_bits.map_or(ROUTER_BITS, |max| ROUTER_BITS.min(max));
                allowed.bits.0 = Some(self.min_bits.map_or(least, |min| min.max(least)));
            }
            None => {}
        }
        allowed
    }

    /// Whether a rule matches the tensor `name`.
    #[must_use]
    pub(crate) fn is_about(&self, name: &str) -> bool {
        self.rules.iter().any(|rule| rule.pattern.is_match(name))
    }

    /// Checks that every rule matches one of `tensors`: a pattern without a match is probably a typing error.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(crate) fn matches<'a>(&self, tensors: &(impl Iterator<Item = &'a str> + Clone)) -> Result<()> {
        match self.rules.iter().find(|rule| !tensors.clone().any(|tensor| rule.pattern.is_match(tensor))) {
            None => Ok(()),
            Some(rule) => Err(Error::option(rule.option, &rule.text, "matches no tensor that can be quantized")),
        }
    }
}

/// The schemes of `schemes` that one of `patterns` matches; `None` without patterns.
fn used_schemes(patterns: &[String], schemes: &[Scheme]) -> Result<Option<Vec<Scheme>>> {
    let mut used = Vec::new();
    for pattern in patterns {
        let whole = regex(OptionName::Schemes, pattern, &format!("^(?:{pattern})$"))?;
        let found = schemes.iter().filter(|scheme| whole.is_match(&scheme.to_string()));
        let before = used.len();
        used.extend(found);
        if used.len() == before {
            let known: Vec<String> = schemes.iter().map(ToString::to_string).collect();
            let reason = format!("matches none of {}", known.join(", "));
            return Err(Error::option(OptionName::Schemes, pattern, reason));
        }
    }
    Ok((!patterns.is_empty()).then_some(used))
}

fn regex(option: OptionName, value: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|fault| Error::option(option, value, format!("not a regular expression: {fault}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::codec::affine::AffineCodec;

    fn policy(keep: &[&str], tensor: &[&str]) -> Result<Policy> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Policy::new(&PolicyOptions { keep: owned(keep), tensor: owned(tensor), ..PolicyOptions::default() }, schemes())
    }

    fn scheme(text: &str) -> Scheme {
        text.parse().unwrap()
    }

    fn schemes() -> &'static [Scheme] {
        AffineCodec.schemes()
    }

    #[test]
    fn schemes_are_chosen_by_their_names() {
        let limits = |patterns: &[&str], tensor: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
            let options = PolicyOptions { schemes: owned(patterns), tensor: owned(tensor), ..PolicyOptions::default() };
            Policy::new(&options, schemes()).map(|policy| policy.allowed(["a.weight"], Role::Down))
        };
        let some = limits(&["4g.*", "8g64"], &[]).unwrap();
        let admitted: Vec<_> =
            schemes().iter().filter(|&&scheme| some.admits(scheme)).map(ToString::to_string).collect();
        assert_eq!(admitted, ["4g128", "4g64", "4g32", "8g64"]);
        assert!(some.kept && limits(&[], &[]).unwrap().admits(scheme("2g32")));
        assert!(limits(&["4g64"], &["a=3-6"]).unwrap().admits(scheme("4g64")));
        assert!(!limits(&["4g64"], &["a=3-6"]).unwrap().admits(scheme("3g64")));
        assert!(limits(&["4g64"], &["a=3g64"]).unwrap().admits(scheme("3g64")));
        for wrong in ["4g", "(", "int4g64"] {
            assert!(limits(&[wrong], &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn specs_read_as_documented() {
        let spec = |text| Spec::parse(text, schemes());
        let bits = |min, max, suffix: Option<&str>| {
            Ok(Spec::Bits { min: Bits::whole(min), max: Bits::whole(max), suffix: suffix.map(str::to_owned) })
        };
        assert_eq!(spec("kept"), Ok(Spec::Kept));
        assert_eq!(spec("4"), bits(4, 4, None));
        assert_eq!(spec("3-6g64"), bits(3, 6, Some("g64")));
        for text in ["", "7", "4g", "4g48", "6-3", "1-4", "four", "-4", "4g64g64"] {
            assert!(spec(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_matching_rule_counts() {
        let policy = policy(&["lm_head"], &["mlp=3", "down_proj=5-8g32"]).unwrap();
        let down = policy.allowed(["model.layers.0.mlp.down_proj.weight"], Role::Down);
        assert!(down.admits(scheme("6g32")) && !down.admits(scheme("6g64")) && !down.admits(scheme("3g32")));
        assert!(!down.admits(Scheme::KEPT) && down.floor_db.is_none());
        let up = policy.allowed(["model.layers.0.mlp.up_proj.weight"], Role::Up);
        assert!(up.admits(scheme("3g128")) && !up.admits(scheme("4g128")));
        let head = policy.allowed(["lm_head.weight"], Role::Head);
        assert!(head.admits(Scheme::KEPT) && !head.admits(scheme("8g32")));
        assert_eq!(head.rule.as_deref(), Some("--keep lm_head"));
        let query = policy.allowed(["model.layers.0.self_attn.q_proj.weight"], Role::Query);
        assert!(query.admits(scheme("2g128")) && query.admits(Scheme::KEPT));
        assert_eq!(query.floor_db, Some(FLOOR_DB));
    }

    #[test]
    fn routers_get_eight_bits_unless_told_otherwise() {
        let gate = "model.layers.0.mlp.gate.weight";
        let default = policy(&[], &[]).unwrap().allowed([gate], Role::Router);
        assert!(!default.admits(scheme("6g32")) && default.admits(scheme("8g64")) && default.admits(Scheme::KEPT));
        let told = policy(&[], &["gate=4"]).unwrap().allowed([gate], Role::Router);
        assert!(told.admits(scheme("4g64")));
        let capped = PolicyOptions { max_bits: Some(4), ..PolicyOptions::default() };
        assert!(Policy::new(&capped, schemes()).unwrap().allowed([gate], Role::Router).admits(scheme("4g64")));
    }

    #[test]
    fn asking_for_two_bits_lifts_the_floor() {
        let asked = PolicyOptions { min_bits: Some(2), ..PolicyOptions::default() };
        assert_eq!(Policy::new(&asked, schemes()).unwrap().allowed(["x"], Role::Other).floor_db, None);
    }

    #[test]
    fn nonsense_is_refused_with_its_option() {
        for (options, expected) in [
            (PolicyOptions { min_bits: Some(7), ..Default::default() }, "⟨min_bits⟩ `7`"),
            (PolicyOptions { max_bits: Some(0), ..Default::default() }, "⟨max_bits⟩ `0`"),
            (PolicyOptions { min_bits: Some(6), max_bits: Some(3), ..Default::default() }, "⟨min_bits⟩ `6`"),
            (PolicyOptions { floor_db: Some(f64::NAN), ..Default::default() }, "⟨floor_db⟩ `NaN`"),
            (PolicyOptions { keep: vec!["(".to_owned()], ..Default::default() }, "⟨keep⟩ `(`"),
            (PolicyOptions { tensor: vec!["x".to_owned()], ..Default::default() }, "⟨tensor⟩ `x`"),
            (PolicyOptions { tensor: vec!["x=9".to_owned()], ..Default::default() }, "⟨tensor⟩ `x=9`"),
        ] {
            let message = Policy::new(&options, schemes()).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
        let unmatched = policy(&["lm_haed"], &[]).unwrap().matches(&["lm_head.weight"].into_iter()).unwrap_err();
        assert!(unmatched.to_string().starts_with("⟨keep⟩ `lm_haed`: matches no tensor"), "{unmatched}");
    }
}
