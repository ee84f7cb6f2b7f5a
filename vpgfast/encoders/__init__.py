"""Encoders: what turns a video's frames, and where they can a sentence, into vectors."""
