//! Pure decisions of the agent: no IO, no clock. Time and randomness come in as values.
