"""PostgreSQL: URL, connection, transaction, catalog, DDL, privileges, shadow-user scope, embedded server."""
