//! Replaces each image placeholder by its expansion.
