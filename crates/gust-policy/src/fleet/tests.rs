//! Tests of the fleet as a whole.
