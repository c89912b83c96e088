"""Rows and chats as files: formats, cleaning, facts and the data card."""
