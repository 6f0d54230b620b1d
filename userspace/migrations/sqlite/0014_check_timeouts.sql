-- A health check has a place among those that run at a time for no longer than a minute.

UPDATE system_tags SET tag = 'healthCheckTimeout::60'
WHERE tag LIKE 'healthCheckTimeout::%' AND CAST(substr(tag, length('healthCheckTimeout::') + 1) AS INTEGER) > 60;
