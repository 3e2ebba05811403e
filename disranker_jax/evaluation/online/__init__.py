"""Online test (A/B test) analysis from an event log: the paper's table 4, without its delta-GSB.

A log is JSON lines (plain or .gz) or Parquet, in one of two forms; the first row decides which.
Other fields are ignored, and the text of the query is not used.

Wide, one row per result page that was shown (an impression):
  user       text or integer; the unit of randomisation, in one bucket only
  day        YYYY-MM-DD (Parquet: a date or timestamp works too)
  bucket     text or integer: the ranker that the user saw
  clicks     the number of results clicked: an integer, or a list with one entry each
  dwell      optional: seconds on the clicked results: one number for all, or a list with one
             each, null where it was not measured
  query_changed   optional: true if the user changed the query afterwards, null if unknown

Long, one row per event; the order of events and their files do not matter:
  event      impression, click, dwell or query_change
  page       text or integer: the result page, on every row
  user, day, bucket   on impressions, as above
  dwell      on dwell events, seconds on one clicked result

A page without click, dwell or query_change events had none. If a long log has no query change at
all, they count as not recorded. Memory grows with users x days for a wide log, with pages for a
long one.

The metrics are sums over users divided by sums over users. The paper gives no definitions; ours:
  pagectr       PageCTR: pages with a click / pages
  userctr       UserCTR: users with a click in the whole test / users
  changequery   change-query ratio: pages after which the query was changed / pages where this is
                known
  dwell         dwell time: seconds / clicks with a measured dwell time
"""
