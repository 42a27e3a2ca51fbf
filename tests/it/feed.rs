//! The feed between an agent and the routers that follow it: nothing is lost, and what breaks off
//! takes nothing with it.

mod away;
mod lines;
pub(crate) mod parties;
mod rules;
mod tell;
