"""TRUSTED. The owner's keys, policy and every decision."""
