"""What the bus costs, beside Redis itself and beside its peers. See docs/performance.md."""
