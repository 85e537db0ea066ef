"""The database: the configuration and the record. The only place with queries."""
