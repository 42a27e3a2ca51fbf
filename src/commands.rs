//! Commands that answer and end.

pub mod check_config;
pub mod doctor;
pub mod explain;
pub mod gpus;
pub mod replay;
pub mod units;
