//! Renders messages with a chat template.
