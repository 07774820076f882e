//! What chat templates find around them.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::json;

/// Instructions that a template may take: enough for ten thousand messages, less than a second or two.
pub(super) const FUEL: u64 = 10_000_000;

/// What an environment calls its only template.
pub(super) const NAME: &str = "chat_template";

/// What a template said when it refused a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// The template with all that it may call.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_template_owned(NAME, without_generation(source).into_owned())?;
    Ok(environment)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The `tojson` of transformers: Python's `json.dumps`, and nothing escaped for HTML.
fn tojson(
    value: Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let ensure_ascii = ensure_ascii.or(options.get("ensure_ascii")?).unwrap_or(false);
    let indent = indent.or(options.get("indent")?).filter(|indent| !indent.is_none());
    let indent = match indent {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(json::MOST_INDENT)),
        }),
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let (between, after_key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([between, after_key]) => (between.as_str(), after_key.as_str()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two texts")),
    };
    let layout = json::Layout { ensure_ascii, indent, between, after_key, sort_keys };
    let value = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(layout.write(&value))
}

/// Python's methods of texts, lists and objects.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let first = args.first().and_then(Value::as_str);
    match (name, value.as_str(), first, args.len()) {
        ("removeprefix", Some(text), Some(start), 1) => {
            Ok(Value::from(text.strip_prefix(start).unwrap_or(text)))
        }
        ("removesuffix", Some(text), Some(end), 1) => Ok(Value::from(text.strip_suffix(end).unwrap_or(text))),
        ("title", Some(text), None, 0) => Ok(Value::from(title(text))),
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// Python's `str.title`: a word begins after anything that is no letter.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut within = false;
    for character in text.chars() {
        if within {
            titled.extend(character.to_lowercase());
        } else {
            titled.extend(character.to_uppercase());
        }
        within = character.is_alphabetic();
    }
    titled
}

/// `{% generation %}` marks answers for training. It becomes a block that does nothing; lines and blanks
/// stay as they are.
fn without_generation(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        rest = tag;
        let Some((inside, _)) = tag.split_once("%}") else { break };
        let name =
            inside.trim_matches(|character: char| "+-".contains(character) || character.is_whitespace());
        let instead = match name {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => continue,
        };
        text.push_str(&inside.replacen(name, instead, 1));
        rest = &tag[inside.len()..];
    }
    text.push_str(rest);
    Cow::Owned(text)
}
