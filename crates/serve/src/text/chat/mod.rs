//! Conversations as prompts: the chat templates that come with models.
//!
//! They are Jinja templates, rendered as `transformers` renders them: the same functions, the same
//! `tojson`, blanks around blocks trimmed.

mod date;
mod environment;
mod json;

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::{Environment, ErrorKind};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::TextError;
use crate::backend::checkpoint::{CheckpointError, read_optional};
use environment::{FUEL, NAME, Raised, environment};

/// Most bytes that a template may write.
const OUTPUT_LIMIT: usize = 64 << 20;

/// Marks where the last message ends, when that is to be continued.
const END_OF_MESSAGES: &str = "END_OF_ALL_MESSAGES ";

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token`, `eos_token` and the like, as far as the model has them.
    tokens: Map<String, Value>,
}

/// How a conversation is written.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// End with what begins an answer.
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// More variables for the template; those it always has cannot be replaced.
    pub variables: Map<String, Value>,
    /// What time `strftime_now` tells, in UTC; without, the template has no such function.
    pub now: Option<SystemTime>,
}

/// `chat_template` in tokenizer_config.json.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// Either form of a token in tokenizer_config.json.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl ChatTemplate {
    /// Reads chat_template.jinja, else `chat_template` in tokenizer_config.json, else there is none.
    ///
    /// # Errors
    /// When a file cannot be read, and when the template is wrong: its syntax, and names that it uses for
    /// usual conversations and nobody knows.
    pub fn read(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let config_path = folder.join("tokenizer_config.json");
        let mut config: Map<String, Value> = read_optional(&config_path)?.unwrap_or_default();
        let path = folder.join("chat_template.jinja");
        let (path, source) = match std::fs::read_to_string(&path) {
            Ok(source) => (path, source),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match config.remove("chat_template").filter(|value| !value.is_null()) {
                    Some(value) => (config_path.clone(), choose(value, &config_path)?),
                    None => return Ok(None),
                }
            }
            Err(source) => return Err(CheckpointError::Read { path, source }),
        };
        let names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"].map(|name| format!("{name}_token"));
        let mut tokens = Map::new();
        for name in names {
            let Some(value) = config.remove(&name).filter(|value| !value.is_null()) else { continue };
            let token = serde_json::from_value(value).map_err(|_| CheckpointError::Invalid {
                path: config_path.clone(),
                message: format!("{name} is neither a text nor an object with content"),
            })?;
            let (Token::Text(text) | Token::Object { content: text }) = token;
            tokens.insert(name, Value::String(text));
        }
        let wrong = |error: &minijinja::Error| wrong(path.clone(), error);
        let environment = environment(&source).map_err(|error| wrong(&error))?;
        let template = Self { environment, source, tokens };
        template.try_out().map_err(|error| wrong(&error))?;
        Ok(Some(template))
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt that a conversation makes.
    ///
    /// # Errors
    /// When the template refuses it, fails or does not end, and when there is no last message to continue.
    pub fn render(&self, messages: &[Value], options: &RenderOptions) -> Result<String, TextError> {
        if !options.continue_final_message {
            return self.written(&json!(messages), options).map_err(|error| refusal(&error));
        }
        let mut messages = messages.to_vec();
        let content = messages.last_mut().and_then(|message| message.get_mut("content"));
        let Some(Value::String(content)) = content else {
            return Err(TextError::NotContinued("it has no text"));
        };
        let text = content.trim().to_owned();
        content.push_str(END_OF_MESSAGES);
        let mut prompt = self.written(&json!(messages), options).map_err(|error| refusal(&error))?;
        let mark = END_OF_MESSAGES.trim_end();
        let end = prompt.rfind(mark).filter(|_| prompt.contains(&text));
        let end = end.ok_or(TextError::NotContinued("the chat template leaves its text out"))?;
        if prompt[..end].contains(mark) {
            return Err(TextError::NotContinued("the chat template writes its text more than once"));
        }
        let exact = prompt[end..].starts_with(END_OF_MESSAGES);
        prompt.truncate(end);
        if !exact {
            // The template trims messages, and would have trimmed what now ends this one.
            prompt.truncate(prompt.trim_end().len());
        }
        Ok(prompt)
    }

    fn written(&self, messages: &Value, options: &RenderOptions) -> Result<String, minijinja::Error> {
        use minijinja::Value as Any;
        use minijinja::value::Serde;

        let given = self.tokens.iter().chain(&options.variables);
        let mut variables: Vec<(String, Any)> =
            given.map(|(name, value)| (name.clone(), Any::from(Serde(value)))).collect();
        let mut set = |name: &str, value: Any| variables.push((name.to_owned(), value));
        set("messages", Any::from(Serde(messages)));
        set("add_generation_prompt", Any::from(options.add_generation_prompt));
        for absent in ["tools", "documents"] {
            set(absent, Any::from(()));
        }
        if let Some(now) = options.now {
            set("strftime_now", Any::from_function(move |format: &str| date::strftime(format, now)));
        }
        let template = self.environment.get_template(NAME)?;
        let mut output = Bounded(Vec::new());
        template.render_captured_to(Any::from_pairs(variables), &mut output)?;
        String::from_utf8(output.0)
            .map_err(|error| minijinja::Error::new(ErrorKind::WriteFailure, error.to_string()))
    }

    /// Finds names that nobody knows where a usual conversation comes by them. A template may well refuse
    /// some conversations, so nothing else counts.
    fn try_out(&self) -> Result<(), minijinja::Error> {
        let said = |role: &str| json!({ "role": role, "content": "text" });
        let conversations =
            [json!([said("user")]), json!([said("system"), said("user"), said("assistant"), said("user")])];
        let options = RenderOptions {
            add_generation_prompt: true,
            now: Some(SystemTime::UNIX_EPOCH),
            ..RenderOptions::default()
        };
        for messages in &conversations {
            if let Err(error) = self.written(messages, &options)
                && matches!(
                    error.kind(),
                    ErrorKind::UnknownFilter
                        | ErrorKind::UnknownTest
                        | ErrorKind::UnknownFunction
                        | ErrorKind::UnknownMethod
                )
            {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The template of a list that is for conversations without tools.
fn choose(value: Value, path: &Path) -> Result<String, CheckpointError> {
    let invalid = |message: String| CheckpointError::Invalid { path: path.to_owned(), message };
    let templates = serde_json::from_value(value).map_err(|_| {
        invalid("chat_template is neither a text nor a list of objects with name and template".to_owned())
    })?;
    match templates {
        Templates::One(template) => Ok(template),
        Templates::Named(mut named) if named.len() == 1 => Ok(named.remove(0).template),
        Templates::Named(named) => {
            let names: Vec<_> = named.iter().map(|one| one.name.clone()).collect();
            let default = named.into_iter().find(|one| one.name == "default");
            default.map(|one| one.template).ok_or_else(|| {
                invalid(format!("none of its chat templates is called \"default\": {}", names.join(", ")))
            })
        }
    }
}

fn wrong(path: PathBuf, error: &minijinja::Error) -> CheckpointError {
    let line = error.line().map_or(String::new(), |line| format!("line {line} of "));
    CheckpointError::Invalid { path, message: format!("{line}the chat template: {}", said(error)) }
}

/// What is wrong, without the name that templates have in here.
fn said(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// Why a conversation does not render.
fn refusal(error: &minijinja::Error) -> TextError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TextError::Refused(message.clone());
        }
        let written = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if written.is_some_and(|error| error.is::<Full>()) {
            return TextError::TemplateLimit { limit: OUTPUT_LIMIT as u64, unit: "bytes" };
        }
        source = cause.source();
    }
    match (error.kind(), error.line()) {
        (ErrorKind::OutOfFuel, _) => TextError::TemplateLimit { limit: FUEL, unit: "steps" },
        (_, Some(line)) => TextError::Template(format!("line {line}: {}", said(error))),
        (_, None) => TextError::Template(said(error)),
    }
}

/// Takes what a template writes, up to [`OUTPUT_LIMIT`].
struct Bounded(Vec<u8>);

/// A template wrote more than it may.
#[derive(Debug, thiserror::Error)]
#[error("more than {OUTPUT_LIMIT} bytes")]
struct Full;

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_LIMIT {
            return Err(io::Error::other(Full));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
