//! What texts go on from: texts or token ids, one or many.

use serde_json::Value;
use tokio::task::spawn_blocking;

use std::sync::Arc;

use super::fields::shown;
use crate::app::App;
use crate::generation::Generator;
use crate::http::error::{ApiError, Code};
use crate::text::Tokenizer;

/// Prompts of one request are at most so many.
const MOST_PROMPTS: usize = 1024;

/// A prompt as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Prompt {
    /// The prompts of a field: a text, a list of texts, token ids, or a list of those.
    pub(in crate::http) fn read(value: Option<Value>) -> Result<Vec<Self>, ApiError> {
        let wrong = || {
            ApiError::of_field(
                "prompt",
                "\"prompt\" has to be a text, a list of texts, token ids, or a list of token ids",
            )
        };
        let prompts = match value {
            None => return Err(ApiError::of_field("prompt", "\"prompt\" is missing")),
            Some(Value::String(text)) => vec![Self::Text(text)],
            Some(Value::Array(list)) => match list.first() {
                None => return Err(ApiError::of_field("prompt", "\"prompt\" is empty")),
                Some(Value::Number(_)) => vec![Self::Ids(ids(list)?)],
                Some(_) => list
                    .into_iter()
                    .map(|item| match item {
                        Value::String(text) => Ok(Self::Text(text)),
                        Value::Array(list) => Ok(Self::Ids(ids(list)?)),
                        _ => Err(wrong()),
                    })
                    .collect::<Result<_, _>>()?,
            },
            Some(_) => return Err(wrong()),
        };
        if prompts.len() > MOST_PROMPTS {
            let count = prompts.len();
            return Err(ApiError::of_field(
                "prompt",
                format!("{count} prompts; at most {MOST_PROMPTS} will do"),
            ));
        }
        Ok(prompts)
    }

    /// Its token ids, checked against the model. `special`: with what the tokenizer puts around a text.
    pub(in crate::http) async fn into_ids(
        self,
        app: &App,
        generator: &Generator,
        special: bool,
    ) -> Result<Vec<u32>, ApiError> {
        let ids = match self {
            Prompt::Ids(ids) => ids,
            Prompt::Text(text) => encode(app, &generator.tokenizer, text, special).await?,
        };
        if ids.is_empty() {
            return Err(ApiError::of_field("prompt", "the prompt is empty"));
        }
        match ids.iter().position(|&id| id as usize >= generator.vocabulary) {
            None => Ok(ids),
            Some(at) => {
                let (id, vocabulary) = (ids[at], generator.vocabulary);
                let message =
                    format!("token {at} of the prompt is {id}; the vocabulary has {vocabulary} tokens");
                Err(ApiError::of_field("prompt", message))
            }
        }
    }
}

fn ids(list: Vec<Value>) -> Result<Vec<u32>, ApiError> {
    let id = |value: Value| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => Err(ApiError::of_field("prompt", format!("{} in \"prompt\" is no token id", shown(&value)))),
    };
    list.into_iter().map(id).collect()
}

/// Texts that are shorter are tokenised where they are: less than a thread's hand-over costs.
const INLINE_BYTES: usize = 4096;

/// A text's token ids; a long text's on a thread that may block.
pub(in crate::http) async fn encode(
    app: &App,
    tokenizer: &Arc<Tokenizer>,
    text: String,
    special: bool,
) -> Result<Vec<u32>, ApiError> {
    let encoded = if text.len() < INLINE_BYTES {
        tokenizer.encode(&text, special)
    } else {
        let _place = app.tokenising.acquire().await;
        let tokenizer = Arc::clone(tokenizer);
        spawn_blocking(move || tokenizer.encode(&text, special))
            .await
            .map_err(|panic| ApiError::new(Code::ModelFailed, format!("the tokenizer failed: {panic}")))?
    };
    encoded.map_err(|error| ApiError::of_field("prompt", error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Vec<Prompt>, String> {
        Prompt::read(Some(value)).map_err(|error| error.message)
    }

    #[test]
    fn prompts_are_texts_or_token_ids_one_or_many() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(read(json!("a")), Ok(vec![text("a")]));
        assert_eq!(read(json!(["a", "b"])), Ok(vec![text("a"), text("b")]));
        assert_eq!(read(json!([1, 2])), Ok(vec![Prompt::Ids(vec![1, 2])]));
        assert_eq!(read(json!([[1], [2, 3]])), Ok(vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]));
        assert_eq!(read(json!(["a", [2]])), Ok(vec![text("a"), Prompt::Ids(vec![2])]));
    }

    #[test]
    fn what_is_no_prompt_is_said_so() {
        assert_eq!(read(json!([])), Err("\"prompt\" is empty".to_owned()));
        assert_eq!(read(json!([1, -1])), Err("-1 in \"prompt\" is no token id".to_owned()));
        assert_eq!(
            read(json!([1, 5_000_000_000u64])),
            Err("5000000000 in \"prompt\" is no token id".to_owned())
        );
        assert!(read(json!({})).unwrap_err().contains("has to be a text"));
        assert_eq!(Prompt::read(None).unwrap_err().message, "\"prompt\" is missing");
        assert_eq!(read(json!(vec!["a"; 1025])), Err("1025 prompts; at most 1024 will do".to_owned()));
    }
}
