//! Images by URL, fetched as vLLM fetches them: from hosts that it was told of, before the prompt is made.

use std::time::Duration;

use ::http::header::HOST;
use ::http::{Request, Uri};
use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::mock::refusal::Refusal;

/// Longest time for one image, as vLLM's `VLLM_IMAGE_FETCH_TIMEOUT`.
const FETCH: Duration = Duration::from_secs(5);

/// Largest image: more than any frontend sends inside a request.
const IMAGE_BYTES_MAX: usize = 64 << 20;

/// Fetches every image of a chat that is named by an `http` URL, whether or not its uuid is known, and
/// puts it inside.
///
/// # Errors
/// In vLLM's words, when its host is none of `domains` or does not give it.
pub async fn fetch_images(
    body: &mut Map<String, Value>,
    domains: &[String],
) -> Result<(), Refusal> {
    let messages = body.get_mut("messages").and_then(Value::as_array_mut);
    for message in messages.into_iter().flatten() {
        let parts = message.get_mut("content").and_then(Value::as_array_mut);
        for part in parts.into_iter().flatten() {
            let url = match part.get_mut("image_url") {
                Some(url @ Value::String(_)) => url,
                Some(Value::Object(image)) => image.entry("url").or_insert(Value::Null),
                _ => continue,
            };
            let Some(text) = url.as_str().filter(|text| text.starts_with("http")) else {
                continue;
            };
            let bytes = image(text, domains).await?;
            let data = base64_simd::STANDARD.encode_to_string(bytes);
            *url = Value::String(format!("data:image/fetched;base64,{data}"));
        }
    }
    Ok(())
}

async fn image(url: &str, domains: &[String]) -> Result<Bytes, Refusal> {
    let uri: Uri = url
        .parse()
        .map_err(|error| Refusal::invalid(format!("{error}: {url}")))?;
    let host = uri.host().unwrap_or_default();
    if !domains.iter().any(|domain| domain == host) {
        return Err(Refusal::invalid(format!(
            "The URL must be from one of the allowed domains: {domains:?}. Input URL domain: {host}"
        )));
    }
    let fetched = timeout(FETCH, get(&uri)).await;
    // What vLLM answers to a server that keeps it waiting has no words at all.
    fetched.unwrap_or_else(|_| Err(Refusal::Broken(String::new())))
}

async fn get(uri: &Uri) -> Result<Bytes, Refusal> {
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
    let unreachable = |error: std::io::Error| {
        let message = format!("Cannot connect to host {host}:{port} ssl:default [{error}]");
        Refusal::Broken(message)
    };
    let broken = |error: hyper::Error| Refusal::Broken(format!("{error}: {uri}"));
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await;
    let stream = TokioIo::new(stream.map_err(unreachable)?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header(HOST, format!("{host}:{port}"));
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Refusal::invalid(error.to_string()))?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        if !status.is_success() {
            let reason = status.canonical_reason().unwrap_or_default();
            let code = status.as_u16();
            return Err(Refusal::Broken(format!(
                "{code}, message='{reason}', url='{uri}'"
            )));
        }
        let body = Limited::new(answer.into_body(), IMAGE_BYTES_MAX).collect();
        let body = body.await;
        let body = body.map_err(|error| Refusal::Broken(format!("{error}: {uri}")))?;
        Ok(body.to_bytes())
    };
    let asked = std::pin::pin!(asked);
    match select(asked, std::pin::pin!(connection)).await {
        Either::Left((answered, _)) => answered,
        // What has come is read though the connection is over.
        Either::Right((_, asked)) => asked.await,
    }
}
