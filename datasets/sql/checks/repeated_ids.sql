-- Must be empty: ids that name several rows.
-- Grain: id.  Reads: kept.  Parameters: none.
select id from kept
group by id
having count(*) > 1
