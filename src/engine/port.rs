//! Free ports on loopback.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Tries for one run of ports; on a box with free ports the first or second succeeds.
const TRIES_MAX: usize = 1000;

/// The first ports of `runs` runs of `length` free ports each. All are bound before any is let go, so
/// that they differ.
pub(crate) fn free_runs(runs: usize, length: u16) -> io::Result<Vec<u16>> {
    let mut bound = Vec::with_capacity(runs);
    for _ in 0..runs {
        bound.push(bind_run(length)?);
    }
    Ok(bound.iter().map(|(first, _)| *first).collect())
}

fn bind_run(length: u16) -> io::Result<(u16, Vec<TcpListener>)> {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let mut failure = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES_MAX {
        let first = bind(0)?;
        let port = first.local_addr()?.port();
        let Some(end) = port.checked_add(length) else {
            continue;
        };
        let rest: io::Result<Vec<_>> = (port + 1..end).map(bind).collect();
        match rest {
            Ok(rest) => return Ok((port, std::iter::once(first).chain(rest).collect())),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Lets `address` pass when a listener can be bound there now.
///
/// # Errors
/// The system's reason when it cannot.
pub(crate) fn check_free(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_differ_and_are_free_until_they_are_bound() {
        let held: Vec<_> = (0..20).map(|_| bind_run(3).unwrap()).collect();
        let addresses: BTreeSet<_> = held
            .iter()
            .flat_map(|(first, _)| *first..first + 3)
            .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .collect();
        assert_eq!(addresses.len(), 60);
        assert!(
            addresses
                .iter()
                .all(|address| check_free(*address).is_err())
        );
        drop(held);
        // Not all: whoever else runs on this machine may take one at any time.
        let free = addresses.iter().filter(|a| check_free(**a).is_ok());
        assert!(free.count() > 30);
        assert_eq!(free_runs(20, 3).unwrap().len(), 20);
    }
}
