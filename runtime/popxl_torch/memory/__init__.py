"""Where values lie: cells, arrays, mapped files and their paging."""
