//! `/openapi.json`: the routes, and what each model reads and writes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::ROUTES;
use crate::app::App;
use crate::backend::Signature;
use crate::hosted::Interface;
use crate::registry::Running;
use crate::tensor::{DType, TensorSpec};

/// `GET /openapi.json`
pub(super) async fn document(State(app): State<Arc<App>>) -> Json<Value> {
    let mut document = Document::default();
    for &(method, route) in ROUTES {
        document.route(method, route);
    }
    for model in app.registry.models() {
        if let Some(running) = model.default_version().and_then(|version| version.ready()) {
            document.model(model.name(), &running);
        }
    }
    Json(document.finish())
}

#[derive(Default)]
struct Document {
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
    /// What models that answer piece by piece take.
    streams: Vec<Value>,
}

impl Document {
    fn route(&mut self, method: &str, route: &str) {
        let mut operation = json!({ "summary": summary(route), "responses": responses(None) });
        if route.contains("{name}") {
            operation["parameters"] = json!([{
                "name": "name", "in": "path", "required": true, "schema": { "type": "string" },
            }]);
        }
        self.operation(method, route, operation);
    }

    fn operation(&mut self, method: &str, route: &str, operation: Value) {
        let path = self.paths.entry(route).or_insert_with(|| json!({}));
        path[method.to_ascii_lowercase()] = operation;
    }

    fn model(&mut self, name: &str, running: &Running) {
        let (input, output) = match (running.hosting(), running.batches().map(|b| &b.signature)) {
            (Some(hosting), _) => self.interface(name, hosting.interface()),
            (_, Some(Signature::Tensors { inputs, outputs, .. })) => {
                (of_tensors(inputs), of_tensors(outputs))
            }
            (_, Some(Signature::Text { dimensions, .. })) => {
                let length = i64::try_from(*dimensions).unwrap_or(-1);
                (json!({ "type": "string" }), of_tensor(DType::F32, &[length]))
            }
            // Texts are asked for through the routes of OpenAI's own.
            (None, None) => return,
        };
        let (input, output) = (self.schema(name, "input", input), self.schema(name, "output", output));
        if running.hosting().is_some_and(|hosting| hosting.interface().streaming) {
            self.streams.push(json!({
                "type": "object",
                "properties": { "model": { "const": name }, "data": input },
                "required": ["model", "data"],
            }));
            return;
        }
        let version = json!({
            "name": "version", "in": "query", "schema": { "type": "string" },
            "description": "By default the newest that is ready.",
        });
        let taken = json!({ "oneOf": [
            { "type": "object", "properties": { "data": input }, "required": ["data"] },
            { "type": "object", "properties": { "instances": { "type": "array", "items": input } }, "required": ["instances"] },
            input,
        ] });
        let given = json!({
            "type": "object",
            "properties": { "data": output, "model": { "const": name }, "version": { "type": "string" } },
        });
        let content = |schema: &Value| json!({ "application/json": { "schema": schema }, "application/msgpack": { "schema": schema } });
        let operation = json!({
            "summary": format!("Ask the model {name}"),
            "operationId": format!("predict_{name}"),
            "parameters": [version],
            "requestBody": { "required": true, "content": content(&taken) },
            "responses": responses(Some(content(&given))),
        });
        self.operation("POST", &format!("/models/{name}/predict"), operation);
    }

    fn interface(&mut self, name: &str, interface: &Interface) -> (Value, Value) {
        let output = self.hoisted(name, "output", interface.output.clone());
        let mut inputs = interface.inputs.iter().map(|(input, schema)| (input, schema.clone()));
        if interface.inputs.len() == 1
            && let Some((input, schema)) = inputs.next()
        {
            return (self.hoisted(name, input, schema), output);
        }
        let properties: Map<String, Value> =
            inputs.map(|(input, schema)| (input.clone(), self.hoisted(name, input, schema))).collect();
        (json!({ "type": "object", "properties": properties, "additionalProperties": false }), output)
    }

    /// A schema whose own definitions stand among those of the document.
    fn hoisted(&mut self, model: &str, part: &str, mut schema: Value) -> Value {
        let prefix = format!("{model}.{part}");
        let definitions = schema.as_object_mut().and_then(|schema| schema.remove("$defs"));
        if let Some(Value::Object(definitions)) = definitions {
            for (name, mut definition) in definitions {
                redirect(&mut definition, &prefix);
                self.schemas.insert(format!("{prefix}.{name}"), definition);
            }
        }
        redirect(&mut schema, &prefix);
        schema
    }

    /// Names a schema, and returns what refers to it.
    fn schema(&mut self, model: &str, part: &str, schema: Value) -> Value {
        let name = format!("{model}.{part}");
        let reference = json!({ "$ref": format!("#/components/schemas/{name}") });
        self.schemas.insert(name, schema);
        reference
    }

    fn finish(mut self) -> Value {
        if !self.streams.is_empty() {
            let schema = json!({ "anyOf": self.streams });
            let body = json!({ "content": { "application/json": { "schema": schema } } });
            self.paths["/v1/inference/stream"]["post"]["requestBody"] = body;
        }
        self.schemas.insert(
            "Error".to_owned(),
            json!({
                "type": "object",
                "properties": { "error": {
                    "type": "object",
                    "properties": {
                        "code": { "type": "string" },
                        "message": { "type": "string" },
                        "request_id": { "type": "string" },
                    },
                } },
            }),
        );
        json!({
            "openapi": "3.1.0",
            "info": { "title": "trustformers-serve", "version": env!("CARGO_PKG_VERSION") },
            "paths": self.paths,
            "components": { "schemas": self.schemas },
        })
    }
}

/// Has references to a schema's own definitions lead to where they stand in the document.
fn redirect(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get_mut("$ref")
                && let Some(name) = to.strip_prefix("#/$defs/")
            {
                *to = format!("#/components/schemas/{prefix}.{name}");
            }
            fields.values_mut().for_each(|value| redirect(value, prefix));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| redirect(value, prefix)),
        _ => {}
    }
}

/// The value of one tensor, or an object of several by name.
fn of_tensors(specs: &[TensorSpec]) -> Value {
    if let [spec] = specs {
        return of_tensor(spec.dtype, &spec.shape);
    }
    let properties: Map<String, Value> =
        specs.iter().map(|spec| (spec.name.clone(), of_tensor(spec.dtype, &spec.shape))).collect();
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    json!({ "type": "object", "properties": properties, "required": names })
}

fn of_tensor(dtype: DType, shape: &[i64]) -> Value {
    let element = match dtype {
        DType::Bool => "boolean",
        DType::I64 | DType::I32 => "integer",
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => "number",
    };
    shape.iter().rev().fold(json!({ "type": element }), |items, &size| {
        let mut list = json!({ "type": "array", "items": items });
        if size >= 0 {
            list["minItems"] = json!(size);
            list["maxItems"] = json!(size);
        }
        list
    })
}

fn responses(content: Option<Value>) -> Value {
    let mut done = json!({ "description": "Done" });
    if let Some(content) = content {
        done["content"] = content;
    }
    let error = json!({ "$ref": "#/components/schemas/Error" });
    json!({
        "200": done,
        "default": { "description": "Why not", "content": { "application/json": { "schema": error } } },
    })
}

fn summary(route: &str) -> &'static str {
    match route {
        "/models/{name}/predict" => "Ask a model about one item, or about many",
        "/v1/inference" => "The same, with the model named in the body",
        "/v1/inference/batch" => "The same for many items",
        "/v1/inference/stream" => "A result piece by piece, as server-sent events",
        "/v1/completions" => "Texts that go on from a prompt, as OpenAI has it",
        "/v1/chat/completions" => "Texts that go on from a conversation, as OpenAI has it",
        "/v1/responses" => "What a model says to a text or a conversation, as OpenAI has it",
        "/v1/embeddings" => "Embeddings of texts, as OpenAI has it",
        "/v1/models" => "The models, as OpenAI has it",
        "/v1/models/{name}" => "One model, as OpenAI has it",
        "/tokenize" => "The tokens of a text",
        "/detokenize" => "The text of tokens",
        "/tokenizer_info" => "What a tokenizer is",
        "/models" | "/admin/models" => "The models",
        "/models/{name}" => "One model",
        "/models/{name}/load" => "Load a model, or load it anew",
        "/models/{name}/unload" => "Unload a model",
        "/admin/models/{name}/reset_breaker" => "Let requests in again",
        "/admin/stats" => "What each model did",
        "/admin/trace" => "The last steps of models that generate text",
        "/health" | "/health/live" => "Whether the process answers",
        "/health/ready" => "Whether every model answers",
        "/metrics" => "Metrics in Prometheus' text format",
        _ => "This document",
    }
}
