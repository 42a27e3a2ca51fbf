//! A rack on one machine: what agents, routers and frontends in processes of their own tell each other
//! over a real NATS server, and find by a real etcd.
//!
//! - A KV event, from the agent's feed and from the engine's socket, to the index of a router elsewhere.
//! - A snapshot of a million blocks.
//! - A router that starts again beside 64 workers of 16,384 blocks.
//! - Placements that a frontend asks of it.
//!
//! Hosts are runtimes of one thread each here, but for the router that starts again, and all of them
//! share the machine's cores. Each floor is the same bytes through the same server at the same pace.

mod agents;
mod asked;
mod figures;
mod fleet;
mod pace;
mod placed;
mod restart;
mod samples;
mod servers;
mod told;
mod whole;

use kvlens::block::SequenceHash;

use crate::agents::Agents;
use crate::asked::{Frontend, SHARED_BLOCKS};
use crate::fleet::{Chance, WORKERS};
use crate::servers::Server;

fn main() {
    let Some(nats) = Server::nats() else {
        println!("rack: skipped, nats-server is not installed");
        return;
    };
    told::print(&nats);
    whole::print(&nats);
    let Some(etcd) = Server::etcd() else {
        println!("router restart, placements over NATS: skipped, etcd is not installed");
        return;
    };
    let mut chance = Chance(3);
    let shared: Vec<_> = std::iter::repeat_with(|| SequenceHash(chance.next()))
        .take(SHARED_BLOCKS)
        .collect();
    let held = (0..WORKERS).map(|number| fleet::blocks(number, &shared));
    let agents = Agents::start(&nats, held.collect());
    agents.register(&etcd);
    let frontend = Frontend::start(&nats);
    let _routing = restart::print((&nats, &etcd), &frontend, &shared);
    placed::print(&nats, &frontend, &shared);
}
