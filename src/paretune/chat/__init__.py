"""Conversations with one or two models: answers side by side, streamed, with the scores of each."""
