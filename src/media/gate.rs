//! What may be fetched at all: schemes, ports and hosts, decided before any packet leaves.

use std::net::IpAddr;

use url::{Host, Url};

use crate::config::media::MediaConfig;
use crate::config::network::Network;
use crate::media::address::is_public;
use crate::media::{MediaError, PolicyError};

/// Last labels of names that only mean something inside somebody's network.
const INSIDE_NAMES: &[&str] = &["localhost", "local", "internal", "svc", "home.arpa"];

/// Decides which URLs may be asked and which addresses may be dialled.
#[derive(Debug)]
pub(crate) struct Gate {
    ports: Vec<u16>,
    listed: Vec<Listed>,
}

/// One entry of the allow list.
#[derive(Debug)]
struct Listed {
    hosts: Hosts,
    /// `None` means the policy's ports.
    port: Option<u16>,
}

#[derive(Debug)]
enum Hosts {
    Name(String),
    /// With its leading dot, so that `evil-example.com` does not end in it.
    Suffix(String),
    Network(Network),
}

impl Gate {
    /// Reads the policy's ports and allow list.
    ///
    /// # Errors
    /// When an entry is neither a name, `*.suffix`, an address nor a network.
    pub(crate) fn new(policy: &MediaConfig) -> Result<Self, PolicyError> {
        let listed = |entry: &String| {
            Listed::parse(entry).ok_or_else(|| PolicyError::AllowEntry {
                entry: entry.clone(),
            })
        };
        Ok(Self {
            ports: policy.ports.clone(),
            listed: policy.allow.iter().map(listed).collect::<Result<_, _>>()?,
        })
    }

    /// Lets `url` pass when it may be asked. A host on the allow list is reached at the ports of
    /// its entries only; any other host must be public and its port one of the policy's.
    ///
    /// # Errors
    /// When scheme, user, port or host are refused.
    pub(crate) fn check(&self, url: &Url) -> Result<(), MediaError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(MediaError::SchemeNotAllowed);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(MediaError::UserNotAllowed);
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(MediaError::MalformedUrl);
        };
        let host = host.to_owned();
        let entries: Vec<&Listed> = self.listed.iter().filter(|e| e.holds(&host)).collect();
        let port_open = if entries.is_empty() {
            self.ports.contains(&port)
        } else {
            entries.iter().any(|entry| self.opens(entry, port))
        };
        if entries.is_empty() && !is_outside(&host) {
            return Err(MediaError::HostNotAllowed);
        }
        if !port_open {
            return Err(MediaError::PortNotAllowed { port });
        }
        Ok(())
    }

    /// Whether `address`, an answer for the name `name`, may be dialled. The answers for a name on
    /// the allow list are taken as they come: the operator named it.
    pub(crate) fn may_dial(&self, name: &str, address: IpAddr) -> bool {
        let name = Host::Domain(name.to_ascii_lowercase());
        is_public(address)
            || self.listed.iter().any(|entry| match &entry.hosts {
                // The port is not known here, so an entry for one port opens no other name.
                Hosts::Network(network) => entry.port.is_none() && network.contains(address),
                _ => entry.holds(&name),
            })
    }

    fn opens(&self, entry: &Listed, port: u16) -> bool {
        entry
            .port
            .map_or_else(|| self.ports.contains(&port), |open| open == port)
    }
}

impl Listed {
    fn parse(text: &str) -> Option<Self> {
        if let Some(network) = Network::parse(text) {
            return Some(Self {
                hosts: Hosts::Network(network),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let suffix = host.strip_prefix("*.");
        let hosts = match (Host::parse(suffix.unwrap_or(host)).ok()?, suffix) {
            (Host::Domain(name), None) => Hosts::Name(undotted(&name).to_owned()),
            (Host::Domain(name), Some(_)) => Hosts::Suffix(format!(".{}", undotted(&name))),
            (Host::Ipv4(address), None) => Hosts::Network(Network::of(address.into())),
            (Host::Ipv6(address), None) => Hosts::Network(Network::of(address.into())),
            _ => return None,
        };
        Some(Self { hosts, port })
    }

    fn holds(&self, host: &Host) -> bool {
        match (&self.hosts, host) {
            (Hosts::Name(listed), Host::Domain(name)) => undotted(name) == listed,
            (Hosts::Suffix(suffix), Host::Domain(name)) => undotted(name).ends_with(suffix),
            (Hosts::Network(network), Host::Ipv4(address)) => network.contains((*address).into()),
            (Hosts::Network(network), Host::Ipv6(address)) => network.contains((*address).into()),
            _ => false,
        }
    }
}

/// A fully qualified name without its last dot: both spellings name one host.
fn undotted(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Whether a host that nobody listed is outside: a public address, or a name that is not plainly
/// an inside one. What the name resolves to is checked when it is dialled.
fn is_outside(host: &Host) -> bool {
    let name = match host {
        Host::Ipv4(address) => return is_public((*address).into()),
        Host::Ipv6(address) => return is_public((*address).into()),
        Host::Domain(name) => undotted(name),
    };
    let inside = |last: &&str| {
        name.strip_suffix(*last)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    name.contains('.') && !INSIDE_NAMES.iter().any(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(allow: &[&str]) -> Gate {
        Gate::new(&MediaConfig {
            allow: allow.iter().map(|&entry| entry.to_owned()).collect(),
            ..MediaConfig::default()
        })
        .unwrap()
    }

    fn check(gate: &Gate, url: &str) -> Result<(), MediaError> {
        gate.check(&Url::parse(url).map_err(|_| MediaError::MalformedUrl)?)
    }

    /// Names and addresses that lead inside, in every spelling that a URL allows.
    const INSIDE: &str = "127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 017700000001 \
        0 127.0.0.1. %31%32%37.0.0.1 １２７.０.０.１ 127。0。0。1 127．0．0．1 12\t7.0.0.1 [::1] \
        [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] \
        [64:ff9b::127.0.0.1] [2002:7f00:1::] [2001:0:4136:e378:8000:63bf:3fff:fdd2] \
        [fe80::1] [fc00::1] [fd00:ec2::254] 169.254.169.254 0xa9fea9fe 168.63.129.16 \
        100.100.100.200 10.0.0.1 172.16.0.1 192.168.0.1 255.255.255.255 224.0.0.1 \
        localhost LOCALHOST localhost. a.localhost printer printer. nas.local \
        metadata.google.internal metadata.google.internal. api.default.svc \
        api.default.svc.cluster.local router.home.arpa loc\u{ad}alhost";

    #[test]
    fn every_spelling_of_an_inside_address_is_refused() {
        for host in INSIDE.split(' ') {
            for url in [format!("http://{host}/a.png"), format!("https://{host}")] {
                assert_eq!(
                    check(&gate(&[]), &url),
                    Err(MediaError::HostNotAllowed),
                    "{url:?}"
                );
            }
        }
        for url in [
            "http:/127.0.0.1",
            "http:127.0.0.1",
            "http:\\\\127.0.0.1\\",
            " http://127.0.0.1/",
            "http://evil.com#@127.0.0.1/\\..\\..\n//",
        ] {
            let verdict = check(&gate(&[]), url);
            let expected = if url.contains("evil") {
                Ok(())
            } else {
                Err(MediaError::HostNotAllowed)
            };
            assert_eq!(verdict, expected, "{url:?}");
        }
    }

    #[test]
    fn schemes_users_ports_and_broken_hosts_are_refused() {
        use MediaError::{MalformedUrl, PortNotAllowed, SchemeNotAllowed, UserNotAllowed};
        let rows = [
            ("http://example.com/a.png", Ok(())),
            ("https://example.com:443/a.png", Ok(())),
            ("https://example.com:80/", Ok(())),
            ("HTTPS://EXAMPLE.com./", Ok(())),
            ("https://8.8.8.8/", Ok(())),
            ("https://[2606:4700::1111]/", Ok(())),
            // The one parser reads a backslash as a slash, so the host is the first one.
            ("http://example.com\\@127.0.0.1/", Ok(())),
            ("file:///etc/passwd", Err(SchemeNotAllowed)),
            ("ftp://example.com/", Err(SchemeNotAllowed)),
            ("gopher://127.0.0.1/", Err(SchemeNotAllowed)),
            ("jar:http://example.com!/a", Err(SchemeNotAllowed)),
            ("unix:/run/x.sock", Err(SchemeNotAllowed)),
            ("s3://bucket/key", Err(SchemeNotAllowed)),
            ("javascript:0", Err(SchemeNotAllowed)),
            ("/etc/passwd", Err(MalformedUrl)),
            ("../../x", Err(MalformedUrl)),
            ("//127.0.0.1/", Err(MalformedUrl)),
            ("http://", Err(MalformedUrl)),
            ("http://256.0.0.1/", Err(MalformedUrl)),
            ("http://1.2.3.4.5/", Err(MalformedUrl)),
            ("http://[fe80::1%25eth0]/", Err(MalformedUrl)),
            ("http://[v1.x]/", Err(MalformedUrl)),
            ("http://a%00b.com/", Err(MalformedUrl)),
            ("http://allowed@example.com/", Err(UserNotAllowed)),
            ("http://:p@example.com/", Err(UserNotAllowed)),
            ("http://example.com:22/", Err(PortNotAllowed { port: 22 })),
            ("http://example.com:0/", Err(PortNotAllowed { port: 0 })),
            (
                "http://example.com:6379/",
                Err(PortNotAllowed { port: 6379 }),
            ),
        ];
        for (url, expected) in rows {
            assert_eq!(check(&gate(&[]), url), expected, "{url}");
        }
    }

    #[test]
    fn the_allow_list_opens_what_it_names_and_no_more() {
        let gate = gate(&[
            "images.internal",
            "*.allowed.com",
            "cdn:8080",
            "127.0.0.1:9000",
            "10.1.0.0/16",
            "::1",
            "[fd00::7]:81",
        ]);
        let rows = [
            ("http://images.internal/", true),
            ("http://IMAGES.internal./", true),
            ("http://images.internal:8080/", false),
            ("http://a.images.internal/", false),
            ("http://a.allowed.com/", true),
            ("http://a.allowed.com.internal/", false),
            ("http://cdn:8080/", true),
            ("http://cdn/", false),
            ("http://127.0.0.1:9000/", true),
            ("http://127.1:9000/", true),
            ("http://127.0.0.1/", false),
            ("http://127.0.0.2:9000/", false),
            ("http://[::ffff:127.0.0.1]:9000/", false),
            ("http://10.1.2.3/", true),
            ("http://10.2.0.1/", false),
            ("http://[::1]/", true),
            ("http://[fd00::7]:81/", true),
            ("http://[fd00::7]/", false),
        ];
        for (url, open) in rows {
            assert_eq!(check(&gate, url).is_ok(), open, "{url}");
        }
    }

    #[test]
    fn answers_are_dialled_only_when_public_or_listed() {
        let gate = gate(&["*.allowed.com", "10.1.0.0/16", "127.0.0.1:9000"]);
        let rows = [
            ("example.com", "8.8.8.8", true),
            ("example.com", "127.0.0.1", false),
            ("example.com", "10.1.2.3", true),
            ("example.com", "10.2.2.3", false),
            ("a.allowed.com", "127.0.0.1", true),
            ("A.ALLOWED.COM.", "127.0.0.1", true),
            ("evil-allowed.com", "127.0.0.1", false),
            ("allowed.com.evil.com", "127.0.0.1", false),
        ];
        for (name, address, open) in rows {
            let verdict = gate.may_dial(name, address.parse().unwrap());
            assert_eq!(verdict, open, "{name} at {address}");
        }
    }

    #[test]
    fn a_bad_allow_entry_is_named() {
        for entry in [
            "",
            "a b",
            "*.10.0.0.1",
            "10.0.0.0/40",
            "a:99999",
            "http://x/",
        ] {
            let policy = MediaConfig {
                allow: vec![entry.to_owned()],
                ..MediaConfig::default()
            };
            let error = Gate::new(&policy).unwrap_err().to_string();
            assert!(error.contains(&format!("{entry:?}")), "{error}");
        }
    }
}
