//! The layers above the file: environment variables, then flags.

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::file::typed;
use super::tree::{Node, Source, Table, Value};

/// What the names of variables that hold settings begin with.
pub const PREFIX: &str = "TRUSTFORMERS_SERVE__";

/// A setting from the command line: `key=value`, and what was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    assignment: String,
    typed: String,
}

impl Override {
    /// `--set assignment`.
    pub fn set(assignment: impl Into<String>) -> Self {
        let assignment = assignment.into();
        Self { typed: format!("--set {assignment}"), assignment }
    }

    /// A flag of its own for `key`, such as `--port`.
    pub fn flag(flag: &str, key: &str, value: &str) -> Self {
        Self { typed: format!("{flag} {value}"), assignment: format!("{key}={value}") }
    }

    /// The key and the value, as the nested tables they mean.
    pub(super) fn parse(&self) -> Result<Table, ConfigError> {
        let source = Source::Flag(self.typed.clone());
        let malformed = |reason: &str| ConfigError::Assignment {
            at: source.clone(),
            reason: format!("{reason}; write --set batching.max_batch_size=64"),
        };
        let (key, value) =
            split_assignment(&self.assignment).ok_or_else(|| malformed("there is no `=` in it"))?;
        let path = parse_key(key).ok_or_else(|| malformed(&format!("`{key}` is not a dotted key")))?;
        Ok(nest(&path, typed(value.trim(), &source), &source))
    }
}

/// Splits at the first `=` outside quotes.
fn split_assignment(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    let at = text.find(|c: char| {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
        quote.is_none() && c == '='
    })?;
    Some((&text[..at], &text[at + 1..]))
}

/// The names of a dotted TOML key, which may be quoted.
fn parse_key(key: &str) -> Option<Vec<String>> {
    // One line cannot open another table or hold a second key.
    if key.contains('\n') {
        return None;
    }
    let text = format!("{key} = 0");
    let root = DeTable::parse(&text).ok()?;
    let mut path = Vec::new();
    let mut table = root.get_ref();
    loop {
        let (name, value) = table.iter().next()?;
        path.push(name.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

/// What one environment variable sets, `None` when it is not ours. Names of keys are lower case;
/// a model's is matched to one of `models` without regard to case, and with `_` for the `-` and `.`
/// that a shell takes in no variable's name.
pub(super) fn parse_variable(
    name: &str,
    text: &str,
    models: &[String],
) -> Option<Result<Table, ConfigError>> {
    let source = Source::Environment(name.to_owned());
    let mut path: Vec<String> = name.strip_prefix(PREFIX)?.split("__").map(str::to_lowercase).collect();
    if path.iter().any(String::is_empty) {
        return Some(Err(ConfigError::Assignment {
            at: source,
            reason: format!("names no key; write {PREFIX}BATCHING__MAX_BATCH_SIZE=64"),
        }));
    }
    if let [section, model, ..] = &mut path[..]
        && section == "models"
        && let Some(known) = find_model(model, models)
    {
        known.clone_into(model);
    }
    Some(Ok(nest(&path, typed(text.trim(), &source), &source)))
}

fn find_model<'a>(wanted: &str, models: &'a [String]) -> Option<&'a str> {
    let shell = |name: &str| name.to_lowercase().replace(['-', '.'], "_");
    let exact = models.iter().find(|name| name.eq_ignore_ascii_case(wanted));
    exact.or_else(|| models.iter().find(|name| shell(name) == wanted)).map(String::as_str)
}

fn nest(path: &[String], leaf: Node, source: &Source) -> Table {
    match path {
        [] => Table::new(),
        [key] => Table::from([(key.clone(), leaf)]),
        [key, rest @ ..] => {
            let inner = Value::Table(nest(rest, leaf, source));
            Table::from([(key.clone(), Node { value: inner, source: source.clone(), raw: None })])
        }
    }
}

/// The variables that say where caches are, for settings that heed no other variable.
pub fn cache_folders() -> impl Iterator<Item = (String, String)> {
    ["XDG_CACHE_HOME", "HOME"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::super::tree::dotted;
    use super::*;

    /// The one leaf of a layer, as `key = value`.
    fn leaf(mut table: Table) -> String {
        let mut path = Vec::new();
        loop {
            assert_eq!(table.len(), 1);
            let (key, node) = table.pop_first().unwrap();
            path.push(key);
            match node.value {
                Value::Table(inner) if node.raw.is_none() => table = inner,
                value => return format!("{} = {value}", dotted(&path)),
            }
        }
    }

    fn variable(name: &str, models: &[&str]) -> String {
        let models: Vec<String> = models.iter().map(|name| (*name).to_owned()).collect();
        leaf(parse_variable(name, "1", &models).unwrap().unwrap())
    }

    #[test]
    fn a_variable_names_its_key_between_double_underscores() {
        assert_eq!(
            variable("TRUSTFORMERS_SERVE__BATCHING__MAX_BATCH_SIZE", &[]),
            "batching.max_batch_size = the integer 1"
        );
        assert_eq!(variable("TRUSTFORMERS_SERVE__MODEL_REPOSITORY", &[]), "model_repository = the integer 1");
    }

    #[test]
    fn other_variables_are_not_ours() {
        for name in ["HOME", "TRUSTFORMERS_SERVE", "TRUSTFORMERS_SERVE_PORT", "XTRUSTFORMERS_SERVE__A"] {
            assert!(parse_variable(name, "1", &[]).is_none(), "{name}");
        }
    }

    #[test]
    fn a_models_name_is_found_without_regard_to_case_and_marks() {
        let models = ["Bert", "all-MiniLM.v2"];
        assert_eq!(
            variable("TRUSTFORMERS_SERVE__MODELS__BERT__WARMUP", &models),
            "models.Bert.warmup = the integer 1"
        );
        assert_eq!(
            variable("TRUSTFORMERS_SERVE__MODELS__ALL_MINILM_V2__WARMUP", &models),
            "models.\"all-MiniLM.v2\".warmup = the integer 1"
        );
        assert_eq!(
            variable("TRUSTFORMERS_SERVE__MODELS__Other__WARMUP", &models),
            "models.other.warmup = the integer 1"
        );
    }

    #[test]
    fn a_variable_without_a_key_is_refused() {
        for name in ["TRUSTFORMERS_SERVE__", "TRUSTFORMERS_SERVE__SERVER__"] {
            assert_eq!(
                parse_variable(name, "1", &[]).unwrap().unwrap_err().to_string(),
                format!(
                    "environment variable {name}: names no key; \
                     write TRUSTFORMERS_SERVE__BATCHING__MAX_BATCH_SIZE=64"
                )
            );
        }
    }

    #[test]
    fn set_takes_a_dotted_key_whose_names_may_be_quoted() {
        for (text, expected) in [
            ("a.b=1", "a.b = the integer 1"),
            ("a = x=y", "a = the string \"x=y\""),
            ("models.\"x.y=z\".device=cpu", "models.\"x.y=z\".device = the string \"cpu\""),
            ("a.b={c=1}", "a.b = a table"),
        ] {
            assert_eq!(leaf(Override::set(text).parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn set_without_key_or_value_shows_the_form() {
        let form = "write --set batching.max_batch_size=64";
        for (text, reason) in [
            ("port", "there is no `=` in it"),
            ("=1", "`` is not a dotted key"),
            ("a..b=1", "`a..b` is not a dotted key"),
            ("[a]\nb=1", "`[a]\nb` is not a dotted key"),
        ] {
            assert_eq!(
                Override::set(text).parse().unwrap_err().to_string(),
                format!("flag --set {text}: {reason}; {form}")
            );
        }
    }
}
