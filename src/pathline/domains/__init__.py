"""Domains: the library's parts put together for a field of application."""
