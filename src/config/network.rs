//! Networks as a configuration names them.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// A network: the addresses that share the first `prefix` bits of `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `10.0.0.0/8`, `fd00::/8` or a lone address; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((base, prefix)) = text.split_once('/') else {
            return text.parse().ok().map(Self::of);
        };
        let base: IpAddr = base.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        (prefix <= Self::of(base).prefix).then_some(Self { base, prefix })
    }

    /// The network that holds `address` alone.
    pub fn of(address: IpAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self {
            base: address,
            prefix,
        }
    }

    /// Whether `address` lies in this network; an IPv4 address never lies in an IPv6 network, its
    /// mapped form included.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                v4_within(address, base, u32::from(self.prefix))
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                v6_within(address, base, u32::from(self.prefix))
            }
            _ => false,
        }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| {
            format!("{text:?} is not a network as 10.0.0.0/8 or fd00::/8, nor an address")
        })
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl JsonSchema for Network {
    fn schema_name() -> Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// Whether the host of `address`, as `http://10.0.0.5:8000`, lies in one of `networks`; none of them
/// holds all.
pub fn hold(networks: &[Network], address: &str) -> bool {
    if networks.is_empty() {
        return true;
    }
    let uri: Option<::http::Uri> = address.parse().ok();
    let host = uri.as_ref().and_then(::http::Uri::host).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // A name may lead anywhere, and elsewhere tomorrow.
    let host: Option<IpAddr> = host.parse().ok();
    host.is_some_and(|ip| networks.iter().any(|network| network.contains(ip)))
}

/// Whether an address shares the first `prefix` bits of `base`.
pub(crate) fn v4_within(address: Ipv4Addr, base: Ipv4Addr, prefix: u32) -> bool {
    // A shift by the full width is `None`: /0 then compares 0 with 0.
    let shift = 32 - prefix;
    address.to_bits().checked_shr(shift) == base.to_bits().checked_shr(shift)
}

/// The same of the other family.
pub(crate) fn v6_within(address: Ipv6Addr, base: Ipv6Addr, prefix: u32) -> bool {
    let shift = 128 - prefix;
    address.to_bits().checked_shr(shift) == base.to_bits().checked_shr(shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_shares_its_prefix() {
        let rows = [
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", false),
            ("0.0.0.0/0", "203.0.113.1", true),
            ("::/0", "fd00::1", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe00::1", false),
            ("192.168.1.7", "192.168.1.7", true),
            ("192.168.1.7", "192.168.1.8", false),
            ("::1", "::1", true),
        ];
        for (network, address, inside) in rows {
            let holds = Network::parse(network)
                .unwrap()
                .contains(address.parse().unwrap());
            assert_eq!(holds, inside, "{network} and {address}");
        }
        for bad in ["", "10/8", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "a/8"] {
            assert_eq!(Network::parse(bad), None, "{bad:?}");
        }
    }
}
