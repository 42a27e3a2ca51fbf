//! Which of a frontend's listeners a socket of systemd's is.

use std::net::TcpListener;

use crate::lifecycle::sockets::SocketError;

/// The sockets that systemd has handed over.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) public: Option<TcpListener>,
    pub(crate) admin: Option<TcpListener>,
}

impl Held {
    /// The admin listener is called so, or comes second: two sockets of one unit have one name.
    ///
    /// # Errors
    /// When there are more than two.
    pub(crate) fn sort(sockets: Vec<(String, TcpListener)>) -> Result<Self, SocketError> {
        let mut held = Self::default();
        for (name, socket) in sockets {
            let place = match held.public {
                None if name != "admin" => &mut held.public,
                _ => &mut held.admin,
            };
            if place.replace(socket).is_some() {
                return Err(SocketError::TooMany { name });
            }
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of so many sockets, by their names, became the public and the admin listener.
    fn sorted(names: &[&str]) -> Result<[Option<usize>; 2], SocketError> {
        let bound = |_| TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets: Vec<_> = names.iter().map(bound).collect();
        let ports: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
        let names = names.iter().map(|name| (*name).to_owned());
        let held = Held::sort(names.zip(sockets).collect())?;
        let place = |socket: Option<TcpListener>| {
            let port = socket?.local_addr().unwrap();
            ports.iter().position(|known| *known == port)
        };
        Ok([place(held.public), place(held.admin)])
    }

    #[test]
    fn sockets_are_told_by_name_and_else_by_order() {
        for (names, places) in [
            (&[] as &[&str], [None, None]),
            (&["public"], [Some(0), None]),
            (&["admin"], [None, Some(0)]),
            (&["admin", "public"], [Some(1), Some(0)]),
            (&["public", "public"], [Some(0), Some(1)]),
            (&["kvlens-frontend.socket"; 2], [Some(0), Some(1)]),
        ] {
            assert_eq!(sorted(names).unwrap(), places, "{names:?}");
        }
        let error = sorted(&["public", "admin", "spare"]).unwrap_err();
        assert!(error.to_string().contains("\"spare\" is one too many"));
    }
}
