//! From parsed items to results: tokenises, submits, and follows a model through a reload.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use trustformers_batching::{Priority, Rejection};

use super::error::{ApiError, Code};
use super::tokenising::tokenising;
use crate::app::App;
use crate::backend::{Input, Output, Signature, TextTokenizer};
use crate::registry::{
    Asked, Batches, Registry, Running, State as ModelState, Terms, Unanswered, Unavailable, Version,
};

/// What becomes of a call's items when the queue takes only some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Those run, and the others have their own errors.
    EachItem,
    /// None runs: the reply has no place for one item's error.
    WholeCall,
}

/// What a request says of its urgency, in its body and its headers.
pub(super) struct Urgency<'a> {
    pub(super) headers: &'a HeaderMap,
    /// Of the body.
    pub(super) priority: Option<Priority>,
    /// Of the body.
    pub(super) timeout_ms: Option<u64>,
    pub(super) arrived: Instant,
}

impl Urgency<'_> {
    /// Whether the client names a time itself.
    pub(super) fn is_timed(&self) -> bool {
        self.timeout_ms.is_some() || self.headers.contains_key("x-timeout-ms")
    }

    /// The terms that `version` grants. The body's own words go before the headers `X-Priority` and
    /// `X-Timeout-Ms`; a timeout counts from the request's arrival.
    pub(super) fn terms(&self, app: &App, version: &Version) -> Result<Terms, ApiError> {
        let batching = &version.source().settings.batching;
        let priority = match self.priority {
            Some(priority) => priority,
            None => header(self.headers, "x-priority")?.map_or(Ok(Priority::default()), parse_priority)?,
        };
        if priority > batching.max_priority {
            let (asked, most) = (priority.name(), batching.max_priority.name());
            let message = format!("priority \"{asked}\" may not be asked for; the highest is \"{most}\"");
            return Err(ApiError::new(Code::PriorityNotAllowed, message));
        }
        let timeout_ms = match self.timeout_ms {
            Some(milliseconds) => Some(milliseconds),
            None => header(self.headers, "x-timeout-ms")?.map(parse_timeout).transpose()?,
        };
        let server = app.settings.request_timeout;
        // Where priorities do not count, a shorter time must not let a request overtake either.
        let counts = if batching.enable_priority_scheduling { priority } else { Priority::Normal };
        let usual = server.mul_f64(batching.timeout_multipliers.of(counts));
        // Naming a time gives no less than not naming one would.
        let timeout = timeout_ms.map_or(usual, |asked| Duration::from_millis(asked).min(server.max(usual)));
        Ok(Terms { priority, deadline: self.arrived + timeout, client: app.clients.of(self.headers) })
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    headers
        .get(name)
        .map(|value| value.to_str().map_err(|_| ApiError::malformed(format!("header {name} is not ASCII"))))
        .transpose()
}

/// The priority of that name.
pub(super) fn parse_priority(text: &str) -> Result<Priority, ApiError> {
    match text.to_ascii_lowercase().as_str() {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        "critical" => Ok(Priority::Critical),
        _ => Err(ApiError::malformed(format!("priority {text:?}: expected low, normal, high or critical"))),
    }
}

fn parse_timeout(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| ApiError::malformed(format!("timeout {text:?}: expected whole milliseconds")))
}

/// What answers for `version`, or why nothing does.
pub(super) fn ready(version: &Version) -> Result<Arc<Running>, ApiError> {
    version.ready().ok_or_else(|| {
        let (name, version_name) = (version.model().to_owned(), version.name().to_owned());
        Unavailable::NotReady { name, version: version_name, state: version.state() }.into()
    })
}

/// The model behind `version`, where it answers requests batch by batch.
pub(super) fn batches<'a>(version: &Version, running: &'a Running) -> Result<&'a Batches, ApiError> {
    running.batches().ok_or_else(|| {
        let name = version.model();
        ApiError::invalid(match running.hosting() {
            None => format!("model \"{name}\" generates text: ask /v1/completions or /v1/chat/completions"),
            Some(_) => format!("model \"{name}\" has inputs of its own: ask /models/{name}/predict"),
        })
    })
}

/// The named model, or the only one of those that `fit`, which is what `does` says in words.
pub(super) fn only(
    registry: &Registry,
    name: Option<&str>,
    does: &str,
    fit: impl Fn(&Running) -> bool,
) -> Result<Arc<Version>, ApiError> {
    if let Some(name) = name {
        return Ok(Arc::clone(registry.model(name)?.version(None)?));
    }
    let mut found = registry
        .models()
        .filter_map(|model| model.default_version())
        .filter(|version| version.ready().is_some_and(|running| fit(&running)));
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(Arc::clone(only)),
        // What still loads may be the one that is meant.
        (None, _) if registry.versions().any(|version| version.state() == ModelState::Loading) => {
            Err(ApiError::new(Code::ModelNotReady, format!("no model that {does} is ready yet")))
        }
        (None, _) => Err(ApiError::new(Code::ModelNotFound, format!("no model that {does} is served"))),
        _ => Err(ApiError::malformed(format!("more than one model {does}: name one in \"model\""))),
    }
}

/// A model that reads text, and the terms on which it is asked to.
pub(super) struct Reader<'a> {
    pub(super) version: &'a Version,
    pub(super) batches: &'a Batches,
    pub(super) tokenizer: &'a Arc<TextTokenizer>,
    pub(super) terms: Terms,
}

/// The tokenizer of a model that reads text.
pub(super) fn tokenizer(running: &Running) -> Option<&Arc<TextTokenizer>> {
    match &running.batches()?.signature {
        Signature::Text { tokenizer, .. } => Some(tokenizer),
        Signature::Tensors { .. } => None,
    }
}

/// Token ids of each text, special tokens included. With `truncate` a text that is too long is cut, else
/// it is an error of its own; so is each where the queue would not take even the shortest.
pub(super) async fn tokenise(
    app: &App,
    reader: &Reader<'_>,
    texts: Vec<String>,
    truncate: bool,
) -> Vec<Result<Input, ApiError>> {
    let Reader { version, batches, tokenizer, terms } = *reader;
    if let Some(unanswered) = batches.refuse_early(texts.len(), terms) {
        return texts.iter().map(|_| Err(explain(version, unanswered.clone()))).collect();
    }
    let (count, bytes) = (texts.len(), texts.iter().map(String::len).sum::<usize>());
    let work = {
        let tokenizer = Arc::clone(tokenizer);
        move || -> Vec<_> { texts.iter().map(|text| tokenise_one(&tokenizer, text, truncate)).collect() }
    };
    let tokenised = tokenising(app, bytes, work).await;
    tokenised.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
}

fn tokenise_one(tokenizer: &TextTokenizer, text: &str, truncate: bool) -> Result<Input, ApiError> {
    let ids = if truncate { tokenizer.encode(text) } else { tokenizer.encode_whole(text) };
    ids.map(Input::Tokens).map_err(|error| ApiError::invalid(error.to_string()))
}

/// How often a call follows a model to its replacement before it gives up.
pub(super) const MOST_RELOADS: usize = 8;

/// Something that a kind of model answers.
pub(super) trait Question: Send + Sync + Sized {
    /// What comes back.
    type Answer: Send;

    /// Asks what runs now; one answer an item. `None` where that is another kind of model.
    fn ask(
        items: &[Arc<Self>],
        running: &Running,
        terms: Terms,
        all_or_none: bool,
    ) -> impl Future<Output = Option<Answers<Self::Answer>>> + Send;
}

/// What each item came to: unanswered, or answered with an error that is no fault of the model's.
pub(super) type Answers<A> = Vec<Result<Result<A, ApiError>, Unanswered>>;

impl Question for Input {
    type Answer = Output;

    async fn ask(
        items: &[Arc<Self>],
        running: &Running,
        terms: Terms,
        all_or_none: bool,
    ) -> Option<Answers<Output>> {
        let results = running.batches()?.infer(items, terms, all_or_none).await;
        Some(results.into_iter().map(|result| result.map(Ok)).collect())
    }
}

impl Question for Asked {
    type Answer = Vec<u8>;

    async fn ask(
        items: &[Arc<Self>],
        running: &Running,
        terms: Terms,
        all_or_none: bool,
    ) -> Option<Answers<Vec<u8>>> {
        Some(running.hosting()?.infer(items, terms, all_or_none).await)
    }
}

/// One answer an item, in order; items that were errors already stay so. Counts every item.
pub(super) async fn infer<Q: Question>(
    version: &Version,
    mut running: Arc<Running>,
    items: Vec<Result<Q, ApiError>>,
    terms: Terms,
    admission: Admission,
) -> Vec<Result<Q::Answer, ApiError>> {
    let metrics = version.metrics();
    let mut answers: Vec<Option<Result<Q::Answer, ApiError>>> = Vec::with_capacity(items.len());
    let mut pending = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Ok(input) => {
                pending.push((index, Arc::new(input)));
                answers.push(None);
            }
            Err(error) => answers.push(Some(Err(error))),
        }
    }
    for reloads in 0..=MOST_RELOADS {
        if pending.is_empty() {
            break;
        }
        let inputs: Vec<_> = pending.iter().map(|(_, input)| Arc::clone(input)).collect();
        let Some(results) = Q::ask(&inputs, &running, terms, admission == Admission::WholeCall).await else {
            break;
        };
        let replacement = version.ready().filter(|now| !Arc::ptr_eq(now, &running) && reloads < MOST_RELOADS);
        let mut again = Vec::new();
        for ((index, input), result) in pending.into_iter().zip(results) {
            match result {
                // Reloaded between look-up and submit: the replacement takes it.
                Err(Unanswered::Rejected(Rejection::Draining, _)) if replacement.is_some() => {
                    again.push((index, input));
                }
                result => {
                    let result = result.unwrap_or_else(|unanswered| Err(explain(version, unanswered)));
                    answers[index] = Some(result);
                }
            }
        }
        pending = again;
        if let Some(replacement) = replacement {
            running = replacement;
        }
    }
    answers
        .into_iter()
        .map(|answer| {
            let answer =
                answer.unwrap_or_else(|| Err(ApiError::new(Code::ModelNotReady, "the model is reloading")));
            metrics.ended(answer.as_ref().err().map(|error| error.code.name()));
            answer
        })
        .collect()
}

/// What an item without an answer tells its client.
pub(super) fn explain(version: &Version, unanswered: Unanswered) -> ApiError {
    match unanswered {
        Unanswered::Failed(failure) => failure.into(),
        Unanswered::Rejected(rejection, drain) => {
            version.metrics().rejected(&rejection);
            ApiError::rejected(&rejection, drain)
        }
    }
}

/// A call that failed as a whole counts once, with its model.
pub(super) fn counted<T>(version: &Version, result: Result<T, ApiError>) -> Result<T, ApiError> {
    result.map_err(|error| {
        if error.counted {
            return error;
        }
        version.metrics().ended(Some(error.code.name()));
        already_counted(error)
    })
}

/// The error of an item, which [`infer`] has counted.
pub(super) fn already_counted(mut error: ApiError) -> ApiError {
    error.counted = true;
    error
}
