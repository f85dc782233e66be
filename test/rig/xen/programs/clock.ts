// Tells when it runs on after it stood still for longer than emulation alone makes it.
let last = Date.now()
setInterval(() => {
  const now = Date.now()
  if (now - last > 3000) console.log(`woken ${now}`)
  last = now
}, 50)
console.log('ticks')
