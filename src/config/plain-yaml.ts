import {FileFindings, Findings} from './problems.ts';
import {openYaml, toPlain} from './yaml.ts';

/** A YAML or JSON file that is not ours, as plain values; undefined for an empty one. @throws AgentError `config.invalid` */
export function parsePlainYaml(path: string, text: string): unknown {
	const findings = new Findings();
	const file = openYaml(text, new FileFindings(path, findings));
	findings.throwIfAny();
	return file && toPlain(file, file.root);
}
