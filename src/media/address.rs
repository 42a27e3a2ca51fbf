//! Which addresses the fetcher may dial: only those that the whole internet can reach.

use std::net::{IpAddr, Ipv6Addr};

use crate::config::network::{v4_within, v6_within};

/// IPv4 networks that are not the public internet (IANA special-purpose registry, multicast), and
/// the one public address that a cloud answers with the host's own secrets.
const CLOSED_V4: &[([u8; 4], u32)] = &[
    ([0, 0, 0, 0], 8),        // this network
    ([10, 0, 0, 0], 8),       // private
    ([100, 64, 0, 0], 10),    // shared by carriers; Alibaba's metadata lives here too
    ([127, 0, 0, 0], 8),      // loopback
    ([168, 63, 129, 16], 32), // Azure's host agent
    ([169, 254, 0, 0], 16),   // link-local; the metadata of most clouds
    ([172, 16, 0, 0], 12),    // private
    ([192, 0, 0, 0], 24),     // protocol assignments; Oracle's metadata
    ([192, 0, 2, 0], 24),     // documentation
    ([192, 88, 99, 0], 24),   // 6to4 relays
    ([192, 168, 0, 0], 16),   // private
    ([198, 18, 0, 0], 15),    // benchmarking
    ([198, 51, 100, 0], 24),  // documentation
    ([203, 0, 113, 0], 24),   // documentation
    ([224, 0, 0, 0], 4),      // multicast
    ([240, 0, 0, 0], 4),      // reserved, broadcast
];

/// The only IPv6 space that is handed out as global unicast. Everything that embeds an IPv4
/// address (mapped, compatible, NAT64), unique-local, link-local, site-local and multicast lies
/// outside it.
const OPEN_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What is not the public internet inside [`OPEN_V6`].
const CLOSED_V6: &[(Ipv6Addr, u32)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments, Teredo, ORCHID
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4: embeds an IPv4 address
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// Whether `address` is on the public internet. An IPv6 form of an IPv4 address never is: what it
/// reaches depends on the network it is dialled from.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !CLOSED_V4
            .iter()
            .any(|&(base, prefix)| v4_within(address, base.into(), prefix)),
        IpAddr::V6(address) => {
            v6_within(address, OPEN_V6.0, OPEN_V6.1)
                && !CLOSED_V6
                    .iter()
                    .any(|&(base, prefix)| v6_within(address, base, prefix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_range_is_closed_to_its_edges() {
        let closed = "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 \
            100.100.100.200 127.0.0.1 127.255.255.255 168.63.129.16 169.254.0.0 169.254.169.254 \
            169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.192 192.0.0.255 192.0.2.1 \
            192.88.99.1 192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.7 \
            203.0.113.7 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 \
            :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1 \
            64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 \
            2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe:: 3fff::1 \
            3fff:fff::1 5f00::1 fc00::1 fd00:ec2::254 fdff::1 fe80::1 febf::1 fec0::1 ff02::1 \
            ff0e::1";
        for text in closed.split_whitespace() {
            assert!(!is_public(text.parse().unwrap()), "{text} must be closed");
        }
    }

    #[test]
    fn the_public_internet_is_open_beside_every_special_range() {
        let open = "1.0.0.0 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 \
            126.255.255.255 128.0.0.1 168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0 \
            172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.88.98.255 \
            192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.1 203.0.112.1 \
            223.255.255.255 2001:200::1 2001:4860:4860::8888 2003::1 2606:4700::1111 2a00::1 \
            3ffe::1";
        for text in open.split_whitespace() {
            assert!(is_public(text.parse().unwrap()), "{text} must be open");
        }
    }
}
