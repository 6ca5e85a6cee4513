"""The network cellar: FirecREST's dialects, the staging area, authentication."""
