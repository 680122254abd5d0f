//! stub, filled next

/// What works here.
#[derive(Debug, Clone)]
pub struct Capabilities {}
