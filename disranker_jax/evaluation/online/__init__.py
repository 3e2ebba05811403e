"""Online test (A/B test) analysis from an event log: the paper's table 4, without its delta-GSB.

A log is JSON lines (.gz or not) or Parquet, in one of two forms; the first row decides which.
Fields that are not named here are ignored, and nothing is computed from the query's text.

Wide, one row a result page that was shown (an impression):
  user       text or integer; the unit of randomisation, in one bucket only
  day        YYYY-MM-DD (Parquet: a date or timestamp will do as well)
  bucket     text or integer: which ranker the user saw
  clicks     how many results of the page were clicked: an integer, or a list with one entry each
  dwell      optional: seconds on the clicked results, one number for all of them, or a list with
             one each, null where it was not measured
  query_changed   optional: true if the user changed the query afterwards, null if nobody knows

Long, one row an event; clicks, dwell and query changes may come in any order and in other files:
  event      impression, click, dwell or query_change
  page       text or integer: the result page, on every row
  user, day, bucket   on impressions, as above
  dwell      on dwell events, seconds on one clicked result

A page without clicks, dwell events or query changes had none; in a long log without a single
query change they count as not recorded. Memory follows the number of users x days of a wide log,
and the number of pages of a long one.

The metrics are sums over users divided by sums over users. The paper does not define its own:
  pagectr       PageCTR: pages with a click / pages
  userctr       UserCTR: users with a click in the whole test / users
  changequery   change-query ratio: pages after which the query was changed / pages where it is
                known whether it was
  dwell         dwell time: seconds / clicks with a measured dwell time
"""
