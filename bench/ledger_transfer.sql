-- A transfer in one statement; ledger_function.sql does the rest. The accounts are drawn as in transfer.sql.
\set debit random(CASE WHEN :hot THEN 2 ELSE 1 END, :accounts)
\set credit CASE WHEN :hot THEN 1 ELSE (:debit + random(0, :accounts - 2)) % :accounts + 1 END
SELECT make_transfer(:debit, :credit, 1);
