//! OpenAI's completions: text that goes on from a prompt or a conversation, whole or token by token.
//!
//! Code map: `fields` reads a body, `options` are what requests for text have in common, `prompts` what they go on
//! from; `texts` grow side by side; `events` sends them as they grow, `reply` writes them in OpenAI's words
//! and `inference` in the server's own. `chat`, `chat_request` and `chat_reply` are the same of conversations,
//! `responses`, `response_request` and `response_reply` of responses; `envelope` is what OpenAI's replies to the former
//! have in common.

mod chat;
mod chat_reply;
mod chat_request;
mod envelope;
mod events;
pub(super) mod fields;
pub(super) mod inference;
mod options;
mod prompts;
mod reply;
mod response_reply;
mod response_request;
mod responses;
mod texts;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use trustformers_batching::Rejection;
use trustformers_batching::continuous::Refusal;

use self::fields::Fields;
use self::options::Options;
use self::reply::{Completions, Echo};
use self::texts::{Ask, Texts};
use super::body::{self, Asked};
use super::error::{ApiError, Code};
use super::infer::{MOST_RELOADS, Urgency, counted, only, ready};
use crate::app::App;
use crate::generation::Generator;
use crate::registry::{Running, Version};

pub(super) use self::chat::chats;
pub(super) use self::chat_request::Conversation;
pub(super) use self::prompts::{Prompt, encode};
pub(super) use self::responses::responses;
pub(super) use super::infer::parse_priority as priority;

/// `POST /v1/completions`
pub(super) async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let asked = Asked::json(&app, request).await?;
    let call = body::beside_others(asked.body.len(), || Call::parse(&asked.body))?;
    let version = generating_model(&app, call.model.as_deref())?;
    let result = async { call.answer(&app, &version, &asked).await }.await;
    counted(&version, result)
}

/// What a client of `/v1/completions` asks.
struct Call {
    model: Option<String>,
    prompts: Vec<Prompt>,
    echo: bool,
    logprobs: Option<u32>,
    options: Options,
}

/// What OpenAI generates where `max_tokens` is not said.
const USUAL_TOKENS: u32 = 16;

impl Call {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let call = Self {
            model: fields.optional("model")?,
            prompts: Prompt::read(fields.value("prompt"))?,
            echo: fields.or("echo", false)?,
            logprobs: fields.optional("logprobs")?,
            options: Options::read(&mut fields)?,
        };
        // Without a token to come, a prompt that is answered may still be scored.
        if !call.echo {
            call.options.need_tokens()?;
        }
        fields.finish()?;
        Ok(call)
    }

    async fn answer(self, app: &App, version: &Arc<Version>, asked: &Asked) -> Result<Response, ApiError> {
        let Self { prompts, echo, logprobs, options, .. } = self;
        let (usual_tokens, field) = (USUAL_TOKENS, "prompt");
        let question = Question { prompts, field, echo, logprobs, usual_tokens, options: &options };
        let (texts, echoed) = question.put(app, version, asked).await?;
        let id = asked.id.as_str();
        let replies =
            Completions::new(id, version.model(), texts.tokenizer(), echoed, logprobs.is_some(), &options);
        if options.stream {
            return Ok(events::stream(texts, replies, id.to_owned(), app.in_flight.enter()));
        }
        Ok(replies.whole(texts).await?.into_response())
    }
}

/// What the engine is asked, whoever asks.
pub(super) struct Question<'a> {
    pub(super) prompts: Vec<Prompt>,
    /// Where they stand in the body.
    pub(super) field: &'static str,
    /// Whether the prompts stand before their texts.
    pub(super) echo: bool,
    /// How many of the likeliest tokens are named at each.
    pub(super) logprobs: Option<u32>,
    /// Most tokens of a text where the request does not say; never more than there is room for.
    pub(super) usual_tokens: u32,
    pub(super) options: &'a Options,
}

impl Question<'_> {
    /// Asks it. Answers when the first text has begun.
    pub(super) async fn put(
        self,
        app: &App,
        version: &Arc<Version>,
        asked: &Asked,
    ) -> Result<(Texts, Vec<Echo>), ApiError> {
        let running = ready(version)?;
        let generator = generator(version, &running)?;
        let urgency = Urgency {
            headers: &asked.headers,
            priority: self.options.priority,
            timeout_ms: self.options.timeout_ms,
            arrived: asked.arrived,
        };
        let ask = Ask {
            id: &asked.id,
            version,
            sampling: self.options.sampling(generator, self.logprobs)?,
            options: self.options,
            field: self.field,
            scores_prompt: self.echo && self.logprobs.is_some(),
            usual_tokens: self.usual_tokens,
            terms: urgency.terms(app, version)?,
            timed: urgency.is_timed(),
            arrived: asked.arrived,
        };
        let count = self.prompts.len();
        refuse_early(generator, count, self.options, self.field)?;
        let special = self.options.add_special_tokens.unwrap_or(true);
        let spelled: Vec<_> = self.prompts.iter().filter(|_| self.echo).map(Prompt::text).collect();
        let prompts = prompts::into_ids(self.prompts, app, generator, special).await?;
        let echo = |(text, ids): (Option<String>, &Vec<u32>)| {
            let text = text.map_or_else(|| decode(generator, ids), Ok)?;
            Ok(Echo::new(text, ids[0]))
        };
        let echoed = spelled.into_iter().zip(&prompts).map(echo).collect::<Result<_, ApiError>>()?;
        let mut texts = submit(&ask, &running, prompts)?;
        texts.begin().await?;
        Ok((texts, echoed))
    }
}

/// Most texts of one request, over all of its prompts.
const MOST_TEXTS: usize = 4096;

/// Refuses prompts, which stand in `field`, that could not be admitted now, before anything is made of them.
fn refuse_early(
    generator: &Generator,
    prompts: usize,
    options: &Options,
    field: &'static str,
) -> Result<(), ApiError> {
    check_texts(prompts, options)?;
    let early = generator.engine.refuse_early(prompts, 0, options.best_of);
    early.map_err(|refused| texts::explain(&refused, field, options))
}

fn check_texts(prompts: usize, options: &Options) -> Result<(), ApiError> {
    let each = options.best_of;
    let texts = prompts * each as usize;
    if texts <= MOST_TEXTS {
        return Ok(());
    }
    let message =
        format!("{prompts} prompts with {each} texts each are {texts}; at most {MOST_TEXTS} will do");
    Err(ApiError::of_field(if each > 1 { options.field_of_texts() } else { "prompt" }, message))
}

fn decode(generator: &Generator, ids: &[u32]) -> Result<String, ApiError> {
    generator.tokenizer.decode(ids, true).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Submits all prompts of a request to the model, or to what has replaced it meanwhile.
pub(super) fn submit(
    ask: &Ask<'_>,
    running: &Arc<Running>,
    prompts: Vec<Vec<u32>>,
) -> Result<Texts, ApiError> {
    let mut running = Arc::clone(running);
    for _ in 0..MOST_RELOADS {
        let submitted = Texts::submit(ask, &running, generator(ask.version, &running)?, &prompts);
        let refused = match submitted {
            Ok(texts) => return Ok(texts),
            Err(refused) => refused,
        };
        let replacement = ask.version.ready().filter(|now| !Arc::ptr_eq(now, &running));
        match (&refused.refusal, replacement) {
            (Refusal::Rejected(Rejection::Draining), Some(replacement)) => running = replacement,
            _ => return Err(texts::explain(&refused, ask.field, ask.options)),
        }
    }
    Err(ApiError::new(Code::ModelNotReady, "the model is reloading"))
}

/// The model behind `version`, where it generates text.
pub(super) fn generator<'a>(version: &Version, running: &'a Running) -> Result<&'a Generator, ApiError> {
    running.generator().ok_or_else(|| {
        ApiError::of_field("model", format!("model \"{}\" does not generate text", version.model()))
    })
}

/// The named model, or the only one that generates text.
pub(super) fn generating_model(app: &App, name: Option<&str>) -> Result<Arc<Version>, ApiError> {
    only(&app.registry, name, "generates text", |running| running.generator().is_some())
}
