//! The KV events of engines: from a socket to frames, from a frame to events.

pub mod codec;
pub mod msgpack;
pub mod zmq;
