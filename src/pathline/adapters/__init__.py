"""Adapters: everything foreign enters here, and speaks our conventions from then on."""
