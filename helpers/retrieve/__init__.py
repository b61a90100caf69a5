"""Looking things up: passages of documents, their vectors, a database of them, and answers with sources."""
