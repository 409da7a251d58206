"""The evolution strategies loop: candidates, search strategies and worker processes. No gradients."""
