//! The paths of `vllm serve` that the mock engine answers.

use std::future::Future;
use std::sync::Arc;

use ::http::StatusCode;
use serde_json::{Map, Value, json};
use tracing::error;

use crate::http::reply::Reply;
use crate::http::{Answer, Call, Routes};
use crate::mock::fetch::fetch_images;
use crate::mock::generation::Generation;
use crate::mock::metrics;
use crate::mock::prompt::{Fault, Prompt};
use crate::mock::refusal::Refusal;
use crate::mock::reply::{self, Shape};
use crate::mock::server::Server;

/// The release whose behaviour is imitated.
const VERSION: &str = "0.32.0";

/// Length of an embedding.
const EMBEDDING_LENGTH: usize = 64;

/// All routes; those that vLLM keeps for development only with `dev`.
pub fn routes(server: &Arc<Server>, dev: bool) -> Routes {
    let on = |handler| on(server, handler);
    let routes = Routes::default()
        .get("/health", on(|_, _| empty()))
        .get("/ping", on(|_, _| empty()))
        .get(
            "/version",
            on(|_, _| Reply::json(StatusCode::OK, &json!({ "version": VERSION }))),
        )
        .get("/metrics", on(|server, _| metrics::reply(server)))
        .get("/v1/models", on(|server, _| models(server)))
        .get(
            "/kv_event_sources",
            on(|server, _| Reply::json(StatusCode::OK, &server.sources)),
        )
        .post("/tokenize", working(server, tokenize))
        .post(
            "/detokenize",
            on(|server, call| settle(detokenize(server, call))),
        )
        .post(
            "/v1/embeddings",
            on(|server, call| settle(embeddings(server, call))),
        )
        .post("/v1/chat/completions", working(server, chat))
        .post("/v1/completions", working(server, completions));
    if dev {
        routes.post("/reset_prefix_cache", working(server, reset_prefix_cache))
    } else {
        routes
    }
}

type Straight = fn(&Server, &Call) -> Reply;

/// A handler that answers without waiting.
fn on(
    server: &Arc<Server>,
    handler: Straight,
) -> impl Fn(Call) -> Answer + Clone + Send + Sync + 'static {
    let server = Arc::clone(server);
    move |call| {
        let reply = handler(&server, &call);
        Box::pin(async move { reply })
    }
}

/// A handler that waits for the engine.
fn working<F>(
    server: &Arc<Server>,
    handler: fn(Arc<Server>, Call) -> F,
) -> impl Fn(Call) -> Answer + Clone + Send + Sync + 'static
where
    F: Future<Output = Result<Reply, Refusal>> + Send + 'static,
{
    let server = Arc::clone(server);
    move |call| {
        let pending = handler(Arc::clone(&server), call);
        Box::pin(async move { settle(pending.await) })
    }
}

async fn chat(server: Arc<Server>, call: Call) -> Result<Reply, Refusal> {
    let mut body = object(&call)?;
    if server.dies_of(&body) {
        error!("a chat holds the deadly text");
        std::process::abort();
    }
    let terms = server.terms(&call.headers, &body)?;
    fetch_images(&mut body, &server.media_domains).await?;
    let prompt = Prompt::chat(&server.model, &server.images, &mut body, server.fault)?;
    server.check_length(prompt.tokens.len(), &terms.wishes)?;
    let generation = Generation::start(&server, &terms, vec![prompt]);
    Ok(reply::answer(Shape::Chat, call.id.as_str(), terms, generation).await)
}

async fn completions(server: Arc<Server>, call: Call) -> Result<Reply, Refusal> {
    let mut body = object(&call)?;
    let terms = server.terms(&call.headers, &body)?;
    let prompts = token_lists(&server, &body.remove("prompt").unwrap_or_default())?;
    for tokens in &prompts {
        server.check_length(tokens.len(), &terms.wishes)?;
    }
    let prompts = prompts.into_iter().map(Prompt::text).collect();
    let generation = Generation::start(&server, &terms, prompts);
    Ok(reply::answer(Shape::Text, call.id.as_str(), terms, generation).await)
}

async fn reset_prefix_cache(server: Arc<Server>, _: Call) -> Result<Reply, Refusal> {
    let mut success = true;
    for rank in &server.ranks {
        success &= rank.clear_cache().await;
    }
    Ok(Reply::json(StatusCode::OK, &json!({ "success": success })))
}

fn empty() -> Reply {
    Reply::text(StatusCode::OK, String::new())
}

fn models(server: &Server) -> Reply {
    let base = server.names.first();
    let model = |name: &str, parent: Option<&String>| {
        json!({
            "id": name,
            "object": "model",
            "created": server.started,
            "owned_by": "vllm",
            "root": name,
            "parent": parent,
            "max_model_len": server.context_tokens_max,
        })
    };
    let bases = server.names.iter().map(|name| model(name, None));
    let loras = server.loras.iter().map(|lora| model(&lora.name, base));
    let models: Vec<_> = bases.chain(loras).collect();
    Reply::json(StatusCode::OK, &json!({ "object": "list", "data": models }))
}

async fn tokenize(server: Arc<Server>, call: Call) -> Result<Reply, Refusal> {
    let mut body = object(&call)?;
    let tokens = match body.get("prompt").and_then(Value::as_str) {
        Some(text) => {
            let special = body.get("add_special_tokens").and_then(Value::as_bool);
            encode(&server, text, special.unwrap_or(true))?
        }
        None => {
            fetch_images(&mut body, &server.media_domains).await?;
            let fault = server.fault.and_then(Fault::of_tokenize);
            Prompt::chat(&server.model, &server.images, &mut body, fault)?.tokens
        }
    };
    let answer = json!({
        "count": tokens.len(),
        "max_model_len": server.context_tokens_max,
        "tokens": tokens,
        "token_strs": null,
    });
    Ok(Reply::json(StatusCode::OK, &answer))
}

fn detokenize(server: &Server, call: &Call) -> Result<Reply, Refusal> {
    let body = object(call)?;
    let tokens = body.get("tokens").and_then(token_list);
    let tokens = tokens.ok_or_else(|| Refusal::invalid("tokens must be a list of token ids"))?;
    let answer = json!({ "prompt": server.model.decode(&tokens) });
    Ok(Reply::json(StatusCode::OK, &answer))
}

fn embeddings(server: &Server, call: &Call) -> Result<Reply, Refusal> {
    let mut body = object(call)?;
    let terms = server.terms(&call.headers, &body)?;
    let inputs = token_lists(server, &body.remove("input").unwrap_or_default())?;
    let embedding = |(index, tokens): (usize, &Vec<u32>)| json!({ "object": "embedding", "index": index, "embedding": embed(tokens) });
    let vectors: Vec<_> = inputs.iter().enumerate().map(embedding).collect();
    let tokens: usize = inputs.iter().map(Vec::len).sum();
    let answer = json!({
        "id": format!("embd-{}", call.id.as_str()),
        "object": "list",
        "model": terms.model,
        "data": vectors,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok(Reply::json(StatusCode::OK, &answer))
}

/// The same tokens always get the same vector of length one.
fn embed(tokens: &[u32]) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new();
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    let mut bytes = [0; EMBEDDING_LENGTH];
    hasher.finalize_xof().fill(&mut bytes);
    let values = bytes.map(|byte| f32::from(byte) - 127.5);
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.iter().map(|value| value / length).collect()
}

/// A text, token ids, or a list of either.
fn token_lists(server: &Server, input: &Value) -> Result<Vec<Vec<u32>>, Refusal> {
    if let Some(text) = input.as_str() {
        return Ok(vec![encode(server, text, true)?]);
    }
    let Some(items) = input.as_array().filter(|items| !items.is_empty()) else {
        return Err(Refusal::invalid(
            "prompt must be text, token ids or a list of them",
        ));
    };
    if let Some(tokens) = token_list(input) {
        return Ok(vec![tokens]);
    }
    let each = items
        .iter()
        .map(|item| match (item.as_str(), token_list(item)) {
            (Some(text), _) => encode(server, text, true),
            (None, Some(tokens)) => Ok(tokens),
            (None, None) => Err(Refusal::invalid("prompt must be text or token ids")),
        });
    each.collect()
}

fn token_list(value: &Value) -> Option<Vec<u32>> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

fn encode(server: &Server, text: &str, special: bool) -> Result<Vec<u32>, Refusal> {
    let tokens = server.model.encode(text, special);
    tokens.map_err(|error| Refusal::invalid(error.to_string()))
}

fn object(call: &Call) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(&call.body)
        .map_err(|error| Refusal::invalid(format!("the body is not a JSON object: {error}")))
}

fn settle(outcome: Result<Reply, Refusal>) -> Reply {
    outcome.unwrap_or_else(|refusal| refusal.reply())
}
