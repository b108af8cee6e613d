// A DNS server of ours in a process of its own, so that its memory can be read. Settings come as JSON in argv; it tells
// its port, and answers every message from the parent with its memory and status.
import {startDns} from '../../../src/dns/index.ts';
import {Metrics, Readiness, systemClock} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';

const {config, table} = JSON.parse(process.argv[2]!);
const readiness = new Readiness(['dns']);
const dns = await startDns({
	config,
	workload: {namespace: 'shop', domain: 'shop.svc.cluster.local'},
	clock: systemClock,
	random: Math.random,
	metrics: new Metrics(),
	log: silentLogger,
	gate: readiness.gate('dns'),
});
dns.setNameTable(Buffer.from(table, 'base64'));
process.on('message', () => process.send!({rss: process.memoryUsage.rss(), status: dns.status()}));
process.on('disconnect', () => process.exit(0));
process.send!({port: dns.listeners[0]!.port});
