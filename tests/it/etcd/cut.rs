//! The network between a client and a server, which can be cut.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    server: SocketAddr,
    passing: JoinSet<()>,
}

impl Network {
    /// A network to the server at `port`, in order.
    pub(crate) async fn to(port: u16) -> Self {
        let mut network = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            server: SocketAddr::from(([127, 0, 0, 1], port)),
            passing: JoinSet::new(),
        };
        network.mend().await;
        network
    }

    /// Breaks all connections, and takes none.
    pub(crate) async fn cut(&mut self) {
        self.passing.shutdown().await;
    }

    /// Takes connections, at the address it had before.
    pub(crate) async fn mend(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("its port");
        self.address = listener.local_addr().expect("it listens");
        self.passing.spawn(pass(listener, self.server));
    }
}

async fn pass(listener: TcpListener, server: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        connections.spawn(async move {
            let Ok(mut upstream) = TcpStream::connect(server).await else {
                return;
            };
            tokio::io::copy_bidirectional(&mut client, &mut upstream)
                .await
                .ok();
        });
    }
}
