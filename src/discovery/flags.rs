//! The flags of every role that meets others over etcd and NATS.

use crate::config::Values;

/// Where the planes between hosts are.
#[derive(Clone, Debug, clap::Args)]
pub struct PlaneFlags {
    /// Address of an etcd member, as http://127.0.0.1:2379; may be repeated
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// Address of a NATS server, as nats://127.0.0.1:4222; may be repeated
    #[arg(long, value_name = "URL")]
    nats: Vec<String>,
}

impl PlaneFlags {
    /// The configuration that was given as flags, beside `values`.
    pub fn values(&self, values: Values) -> Values {
        let given = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        values
            .set_given("etcd.endpoints", given(&self.etcd))
            .set_given("nats.servers", given(&self.nats))
    }
}
