//! Addresses of engines and agents, as text: `http://host:port` or, on the same host, `unix:/path`.

use std::collections::HashSet;

/// Whether `text` is such an address.
pub fn is_address(text: &str) -> bool {
    is_http(text) || text.starts_with("unix:/")
}

/// Whether `text` is one that other hosts can reach.
pub fn is_http(text: &str) -> bool {
    let host = text.strip_prefix("http://").unwrap_or_default();
    !host.is_empty() && host.parse::<::http::uri::Authority>().is_ok()
}

/// Why a list of agents cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadAgents {
    #[error("{url:?} is not the address of an agent's listener, as http://127.0.0.1:8200")]
    Url { url: String },
    #[error("{url:?} is named twice")]
    Twice { url: String },
}

/// The addresses of agents' listeners, none of them twice.
///
/// # Errors
/// The first that is none, or that was named before.
pub fn agents<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, BadAgents> {
    let mut known = HashSet::new();
    let new = |url| new_agent(url, &mut known);
    urls.into_iter().map(new).collect()
}

/// The address of one more agent's listener, which then is among the `known`.
///
/// # Errors
/// When it is none, or known already.
pub fn new_agent(url: &str, known: &mut HashSet<String>) -> Result<String, BadAgents> {
    let address = url.trim_end_matches('/').to_owned();
    let url = url.to_owned();
    if !is_address(&address) {
        return Err(BadAgents::Url { url });
    }
    match known.insert(address.clone()) {
        true => Ok(address),
        false => Err(BadAgents::Twice { url }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_address_is_a_host_and_a_port() {
        for (urls, refused) in [
            (&["http://127.0.0.1:8200/", "http://a:1"] as &[_], None),
            (&["unix:/run/agent.sock"], None),
            (&[], None),
            (&["127.0.0.1:8200"], Some("is not the address")),
            (&["http://"], Some("is not the address")),
            (&["https://a:1"], Some("is not the address")),
            (&["http://a:1/path"], Some("is not the address")),
            (&["unix:run/agent.sock"], Some("is not the address")),
            (&["http://a:1", "http://a:1/"], Some("is named twice")),
        ] {
            let outcome = agents(urls.iter().copied()).map_err(|error| error.to_string());
            match refused {
                None => assert_eq!(outcome.unwrap().len(), urls.len()),
                Some(part) => {
                    let error = outcome.unwrap_err();
                    assert!(error.contains(part), "{error}");
                }
            }
        }
    }
}
