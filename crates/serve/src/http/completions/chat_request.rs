//! What a client of `/v1/chat/completions` asks.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::options::{Options, max_tokens};
use crate::http::error::ApiError;

/// Who may have said something. A developer's message is a system message by its newer name.
const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];
/// Most of the likeliest tokens that are told beside each token, as OpenAI has it.
const MOST_TOP_LOGPROBS: u32 = 20;

/// A request for the next message of a conversation.
#[derive(Debug)]
pub(super) struct ChatCall {
    pub(super) model: Option<String>,
    pub(super) conversation: Conversation,
    /// How many of the likeliest tokens are told beside each token of the answer.
    pub(super) logprobs: Option<u32>,
    pub(super) options: Options,
}

/// Messages, and how they become a prompt.
#[derive(Debug)]
pub(in crate::http) struct Conversation {
    /// Objects with `role` and `content`, both texts.
    pub(super) messages: Vec<Value>,
    pub(super) add_generation_prompt: bool,
    pub(super) continue_final_message: bool,
    /// More variables for the template.
    pub(super) variables: Map<String, Value>,
}

impl ChatCall {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut call = Self {
            model: fields.optional("model")?,
            conversation: Conversation::read(&mut fields)?,
            logprobs: logprobs(&mut fields)?,
            options: Options::read(&mut fields)?,
        };
        if let Some(most) = max_tokens(&mut fields, "max_completion_tokens")? {
            if most == 0 {
                let message = "\"max_completion_tokens\" is 0; at least 1 is needed";
                return Err(ApiError::of_field("max_completion_tokens", message));
            }
            call.options.max_tokens = Some(most);
        }
        call.options.need_tokens()?;
        refuse_others(&mut fields)?;
        fields.finish()?;
        Ok(call)
    }
}

/// How many of the likeliest tokens are asked for, where any are.
fn logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.or("logprobs", false)?;
    let Some(top) = fields.optional::<i64>("top_logprobs")? else { return Ok(wanted.then_some(0)) };
    let wrong = |message: String| Err(ApiError::of_field("top_logprobs", message));
    match u32::try_from(top) {
        Ok(top) if top <= MOST_TOP_LOGPROBS && wanted => Ok(Some(top)),
        Ok(0) => Ok(None),
        Ok(top) if top <= MOST_TOP_LOGPROBS => {
            wrong("\"top_logprobs\" needs \"logprobs\" to be true".to_owned())
        }
        _ => wrong(format!("\"top_logprobs\" is {top}; 0 to {MOST_TOP_LOGPROBS} will do")),
    }
}

/// Refuses what would change the answer and cannot be done, in words of its own.
fn refuse_others(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.value("tools").is_some_and(|tools| tools != json!([])) {
        return Err(ApiError::of_field("tools", "tools are not supported"));
    }
    if fields.value("tool_choice").is_some_and(|choice| choice != "none" && choice != "auto") {
        return Err(ApiError::of_field("tool_choice", "tools are not supported"));
    }
    if fields.value("response_format").is_some_and(|format| format["type"] != "text") {
        let message = "\"response_format\" has to be {\"type\": \"text\"}: no other is supported";
        return Err(ApiError::of_field("response_format", message));
    }
    Ok(())
}

impl Conversation {
    /// Reads the fields that are about it.
    pub(in crate::http) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let messages = messages(fields.value("messages"))?;
        let continue_final_message = fields.or("continue_final_message", false)?;
        let add_generation_prompt = fields.or("add_generation_prompt", !continue_final_message)?;
        if add_generation_prompt && continue_final_message {
            let message = "a message is either continued or answered: one of \"continue_final_message\" and \
                           \"add_generation_prompt\" has to be false";
            return Err(ApiError::of_field("continue_final_message", message));
        }
        let variables = fields.or("chat_template_kwargs", Map::new())?;
        Ok(Self { messages, add_generation_prompt, continue_final_message, variables })
    }
}

fn of_messages(message: impl Into<String>) -> ApiError {
    ApiError::of_field("messages", message)
}

fn messages(value: Option<Value>) -> Result<Vec<Value>, ApiError> {
    match value {
        None => Err(of_messages("\"messages\" is missing")),
        Some(Value::Array(list)) if list.is_empty() => Err(of_messages("\"messages\" is empty")),
        Some(Value::Array(list)) => {
            list.into_iter().enumerate().map(|(at, item)| message(at, item)).collect()
        }
        Some(_) => Err(of_messages("\"messages\" is not a list")),
    }
}

/// A message as templates expect it.
fn message(at: usize, value: Value) -> Result<Value, ApiError> {
    let wrong = |what: &str| of_messages(format!("message {at} {what}"));
    let Value::Object(mut fields) = value else { return Err(wrong("is not an object")) };
    fields.retain(|_, value| !value.is_null());
    let role = match fields.remove("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role,
        Some(role) => return Err(wrong(&format!("has the role {role}, not one of {}", ROLES.join(", ")))),
        None => return Err(wrong("has no role")),
    };
    let role = if role == "developer" { "system" } else { &role };
    let content = match fields.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts: Result<Vec<String>, _> = parts.into_iter().map(|part| text_of(part, &wrong)).collect();
            texts?.join("\n")
        }
        Some(_) => return Err(wrong("has content that is neither a text nor a list of parts")),
        None => return Err(wrong("has no content")),
    };
    let mut message = json!({ "role": role, "content": content });
    if let Some(name) = fields.remove("name") {
        message["name"] = name;
    }
    // What answers carry and clients send back; empty lists of tool calls among them.
    match fields.iter().find(|(_, value)| **value != json!([])) {
        Some((other, _)) => Err(wrong(&format!("has \"{other}\", which is not supported"))),
        None => Ok(message),
    }
}

fn text_of(part: Value, wrong: &impl Fn(&str) -> ApiError) -> Result<String, ApiError> {
    match (part["type"].as_str(), &part["text"]) {
        (Some("text"), Value::String(text)) => Ok(text.clone()),
        (Some("text"), _) => Err(wrong("has a part without text")),
        (Some(other), _) => Err(wrong(&format!("has a part of type {other:?}; only \"text\" is supported"))),
        (None, _) => Err(wrong("has a part without a type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: Value) -> Result<ChatCall, ApiError> {
        let mut body = json!({ "messages": [{ "role": "user", "content": "Hello" }] });
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        ChatCall::parse(body.to_string().as_bytes())
    }

    fn refused(change: Value) -> (Option<&'static str>, String) {
        let error = parse(change).unwrap_err();
        (error.param, error.message)
    }

    fn refused_messages(messages: Value) -> String {
        let (param, message) = refused(json!({ "messages": messages }));
        assert_eq!(param, Some("messages"));
        message
    }

    #[test]
    fn content_is_a_text_or_parts_of_text() {
        let parts = json!([{ "type": "text", "text": "one" }, { "type": "text", "text": "two" }]);
        let messages = json!([
            { "role": "developer", "content": "Be brief", "refusal": null },
            { "role": "assistant", "content": "Yes?", "tool_calls": [] },
            { "role": "user", "content": parts, "name": "Ada" },
        ]);
        let call = parse(json!({ "messages": messages })).unwrap();
        let expected = [
            json!({ "role": "system", "content": "Be brief" }),
            json!({ "role": "assistant", "content": "Yes?" }),
            json!({ "role": "user", "content": "one\ntwo", "name": "Ada" }),
        ];
        assert_eq!(call.conversation.messages, expected);
    }

    #[test]
    fn messages_that_are_none_are_refused_by_their_place() {
        assert_eq!(refused_messages(json!(null)), "\"messages\" is missing");
        assert_eq!(refused_messages(json!([])), "\"messages\" is empty");
        assert_eq!(refused_messages(json!("Hello")), "\"messages\" is not a list");
        assert_eq!(refused_messages(json!(["Hello"])), "message 0 is not an object");
        assert_eq!(refused_messages(json!([{ "content": "a" }])), "message 0 has no role");
        assert_eq!(refused_messages(json!([{ "role": "user" }])), "message 0 has no content");
        let roles = "system, developer, user, assistant";
        let unknown = json!([{ "role": "user", "content": "a" }, { "role": "robot", "content": "b" }]);
        assert_eq!(
            refused_messages(unknown),
            format!("message 1 has the role \"robot\", not one of {roles}")
        );
        let image = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]);
        let message = "message 0 has a part of type \"image_url\"; only \"text\" is supported";
        assert_eq!(refused_messages(image), message);
        let call = json!([{ "role": "assistant", "content": "a", "tool_calls": [{}] }]);
        assert_eq!(refused_messages(call), "message 0 has \"tool_calls\", which is not supported");
    }

    #[test]
    fn an_answer_begins_unless_the_last_message_goes_on() {
        let usual = parse(json!({})).unwrap().conversation;
        assert!(usual.add_generation_prompt && !usual.continue_final_message);
        let goes_on = parse(json!({ "continue_final_message": true })).unwrap().conversation;
        assert!(!goes_on.add_generation_prompt && goes_on.continue_final_message);
        let both = json!({ "continue_final_message": true, "add_generation_prompt": true });
        assert_eq!(refused(both).0, Some("continue_final_message"));
    }

    #[test]
    fn logprobs_are_asked_for_in_two_fields() {
        let asked = |change| parse(change).unwrap().logprobs;
        assert_eq!(asked(json!({})), None);
        assert_eq!(asked(json!({ "logprobs": true })), Some(0));
        assert_eq!(asked(json!({ "logprobs": true, "top_logprobs": 5 })), Some(5));
        assert_eq!(asked(json!({ "logprobs": false, "top_logprobs": 0 })), None);
        assert_eq!(refused(json!({ "top_logprobs": 5 })).0, Some("top_logprobs"));
        let (param, message) = refused(json!({ "logprobs": true, "top_logprobs": 21 }));
        assert_eq!(
            (param, message.as_str()),
            (Some("top_logprobs"), "\"top_logprobs\" is 21; 0 to 20 will do")
        );
    }

    #[test]
    fn the_newer_name_of_max_tokens_goes_before_the_older() {
        let call = parse(json!({ "max_tokens": 3, "max_completion_tokens": 5 })).unwrap();
        assert_eq!(call.options.max_tokens, Some(5));
        for wrong in [0, -1] {
            assert_eq!(refused(json!({ "max_completion_tokens": wrong })).0, Some("max_completion_tokens"));
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_not_passed_over() {
        assert_eq!(refused(json!({ "tools": [{}] })).0, Some("tools"));
        assert_eq!(refused(json!({ "tool_choice": "required" })).0, Some("tool_choice"));
        assert_eq!(
            refused(json!({ "response_format": { "type": "json_object" } })).0,
            Some("response_format")
        );
        let (_, message) = refused(json!({ "mesages": [] }));
        assert_eq!(message, "unknown field \"mesages\"; did you mean \"messages\"?");
        let nothing = json!({ "tools": [], "tool_choice": "none", "response_format": { "type": "text" } });
        assert!(parse(nothing).is_ok());
    }
}
