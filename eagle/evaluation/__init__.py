"""Measuring: synthetic pairs, and benchmarks that go through the same public interface as users."""
